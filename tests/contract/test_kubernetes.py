"""The Helm chart and the manifests for KServe, read by Helm and checked with the schemas of Kubernetes."""

from __future__ import annotations

import copy
import json
import re
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import jsonschema
import kubernetes_validate
import pytest
import yaml

import mlcls
from scripts.cli_reference import make_parser
from support.compose import configure
from support.helm import CHART, REQUIRED, Object, container_of, find, render, run_helm
from support.processes import ROOT
from support.programs import find_program

VERSIONS: Final = [f"1.{minor}" for minor in range(28, 38)]
KSERVE: Final = ROOT / "deploy" / "kserve"
CRDS: Final[Mapping[str, Any]] = yaml.safe_load((ROOT / "tests" / "support" / "crd_schemas.yaml").read_text())
GATEWAY: Final = {"enabled": True, "tlsSecret": "tls", "apiKeysSecret": "keys"}
KEDA: Final = {"mode": "keda", "prometheus": "http://prometheus.monitoring:9090"}
FETCH: Final = {"image": "registry.example/fetch:1", "command": ["cp", "-r", "/x/.", "/repository"], "secret": "store"}

COMBINATIONS: Final[Mapping[str, Mapping[str, Any]]] = {
    "defaults": {},
    "image": {"repository": {"image": "registry.example/animals:3"}},
    "fetch": {"repository": {"fetch": FETCH}, "serviceAccountName": "store"},
    "gpu": {"target": "gpu", "nodeSelector": {"gpu": "yes"}, "tolerations": [{"key": "gpu", "operator": "Exists"}]},
    "hpa": {"autoscaling": {"mode": "hpa", "waitingPerPod": 0.5}},
    "keda": {"autoscaling": KEDA, "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}}},
    "gateway": {
        "gateway": {**GATEWAY, "env": {"BURST": "9"}, "service": {"type": "LoadBalancer", "annotations": {"a": "b"}}},
        "imagePullSecrets": ["registry"],
        "podMonitor": {"enabled": True},
    },
    "canary": {"canaryOf": "main", "replicas": 1},
    "open": {"networkPolicy": {"enabled": False}},
    "closed": {"networkPolicy": {"clients": [], "monitoring": [], "egress": [{"ports": [{"port": 4318}]}]}},
    "words that YAML reads as something else": {
        "models": ["1.0", "true"],
        "adminKeySecret": "0",
        "repository": {"claim": "1"},
        "gateway": {"enabled": True, "tlsSecret": "1", "apiKeysSecret": "2"},
        "canaryOf": "",
        "args": ["--poll", "5"],
        "env": {"MLCLS_LABEL_METRICS": "100"},
        "imagePullSecrets": ["7"],
        "serviceAccountName": "8",
    },
}


@cache
def rendered(name: str) -> list[Object]:
    """The objects of a combination of values, for the newest Kubernetes."""
    return render(COMBINATIONS[name])


def kserve_objects() -> list[Object]:
    return [yaml.safe_load(path.read_text()) for path in sorted(KSERVE.glob("*.yaml"))]


def kserve_pod() -> Object:
    """The pod that KServe makes: what the InferenceService says goes into the runtime's, and arguments are appended."""
    service, runtime = kserve_objects()
    predictor = service["spec"]["predictor"]
    container = copy.deepcopy(runtime["spec"]["containers"][0])
    container["args"] += predictor["model"]["args"]
    own = {
        key: value
        for key, value in predictor.items()
        if key not in ("model", "autoScaling", "minReplicas", "maxReplicas")
    }
    spec = {**own, "containers": [container], "volumes": runtime["spec"]["volumes"]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "mlcls"}, "spec": spec}


def pod_specs() -> dict[str, Object]:
    """Each kind of pod, by the combination and the Deployment."""
    specs = {
        f"{name}/{each['metadata']['name']}": each["spec"]["template"]["spec"]
        for name in COMBINATIONS
        for each in rendered(name)
        if each["kind"] == "Deployment"
    }
    return {**specs, "kserve": kserve_pod()["spec"]}


def validate(each: Object, version: str) -> None:
    if each["kind"] in CRDS:
        jsonschema.validate(each, CRDS[each["kind"]])
    else:
        kubernetes_validate.validate(each, version, strict=True)


@pytest.mark.parametrize("name", COMBINATIONS)
def test_the_chart_lints_and_every_kubernetes_knows_its_objects(name: str) -> None:
    process = run_helm("lint", COMBINATIONS[name], "--strict")
    assert process.returncode == 0, process.stdout + process.stderr
    versions = VERSIONS[5:] if name == "image" else VERSIONS
    objects = render(COMBINATIONS[name], versions[0])
    assert objects == rendered(name), "the objects do not depend on the version"
    for version in versions:
        for each in objects:
            validate(each, version)


def test_a_misspelled_field_is_found() -> None:
    deployment = copy.deepcopy(find(rendered("defaults"), "Deployment", "animals-mlcls"))
    container_of(deployment)["livenesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="livenesProbe"):
        validate(deployment, VERSIONS[0])


def test_an_image_volume_needs_a_new_kubernetes() -> None:
    process = run_helm("template", COMBINATIONS["image"], "--kube-version=1.32")
    assert process.returncode != 0
    assert "repository.image needs Kubernetes 1.35" in process.stderr


def test_kserve_knows_the_objects() -> None:
    for each in kserve_objects():
        validate(each, VERSIONS[-1])
    for version in VERSIONS:
        validate(kserve_pod(), version)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"image": ""}, "/image"),
        ({"models": []}, "/models"),
        ({"models": ["--supervise"]}, "/models/0"),
        ({"adminKeySecret": ""}, "/adminKeySecret"),
        ({"repository": {}}, "/repository"),
        ({"repository": {"claim": "a", "image": "b"}}, "/repository"),
        ({"repository": {"fetch": {"image": "a"}}}, "command"),
        ({"target": "tpu"}, "/target"),
        ({"replicas": 0}, "/replicas"),
        ({"replica": 2}, "replica"),
        ({"env": {"MLCLS_ADMIN_KEY": "secret"}}, "MLCLS_ADMIN_KEY"),
        ({"autoscaling": {"mode": "keda"}}, "/autoscaling/prometheus"),
        ({"autoscaling": {"mode": "vpa"}}, "/autoscaling/mode"),
        ({"gateway": {"enabled": True, "tlsSecret": "a"}}, "/gateway/apiKeysSecret"),
        ({"gateway": {"env": {"BURST": "many"}}}, "/gateway/env/BURST"),
        ({"gateway": {"env": {"TRITON_HOST": "x"}}}, "TRITON_HOST"),
        ({"resources": {"limits": {"memory": "8 GB"}}}, "/resources/limits/memory"),
        ({"canaryOf": "main", "gateway": GATEWAY}, "A canary has no gateway"),
    ],
)
def test_wrong_values_are_refused(values: dict[str, Any], words: str) -> None:
    process = run_helm("template", values)
    assert process.returncode != 0
    assert words in process.stderr


def test_a_parent_chart_may_use_it() -> None:
    """Helm gives each subchart the key `global`."""
    assert run_helm("lint", {"global": {"registry": "x"}}).returncode == 0


def test_every_pod_obeys_pod_security_restricted() -> None:
    specs = pod_specs()
    assert len(specs) == len(COMBINATIONS) + 3, "two of them have a gateway, and there is KServe's"
    for name, spec in specs.items():
        context = spec["securityContext"]
        assert context["runAsNonRoot"] is True and context["runAsUser"] == 1000, name
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert spec["automountServiceAccountToken"] is False and spec["enableServiceLinks"] is False, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys(), name
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name
            assert {"requests", "limits"} == container["resources"].keys(), name
        for volume in spec["volumes"]:
            (kind,) = volume.keys() - {"name"}
            assert kind in {"configMap", "emptyDir", "persistentVolumeClaim", "projected", "image"}, name


def test_the_chart_says_what_compose_says() -> None:
    services = configure("*", MLCLS_MODELS=" ".join(REQUIRED["models"]), MLCLS_CPU_TARGET="embedded")["services"]
    composed = services["serve-cpu"]
    deployment = find(rendered("defaults"), "Deployment", "animals-mlcls")
    pod, container = deployment["spec"]["template"]["spec"], container_of(deployment)
    parser = make_parser("mlcls")
    ours, theirs = (vars(parser.parse_args(list(args))) for args in (container["args"], composed["command"]))
    assert str(ours.pop("repository")) == "/models"
    theirs.pop("repository")  # by the image's variable
    assert ours == theirs
    probe = container["readinessProbe"]["exec"]["command"]
    assert " ".join(probe) == composed["healthcheck"]["test"][-1]
    assert f"{pod['terminationGracePeriodSeconds']}s" == "60s" and composed["stop_grace_period"] == "1m0s"
    (memory,) = (each for each in pod["volumes"] if each["name"] == "shared-memory")
    assert memory["emptyDir"] == {"medium": "Memory", "sizeLimit": "1Gi"}
    assert int(composed["shm_size"]) == 1 << 30
    limits = composed["deploy"]["resources"]["limits"]
    assert container["resources"]["limits"] == {
        "cpu": str(int(limits["cpus"])),
        "memory": f"{int(limits['memory']) >> 30}Gi",
    }

    gateway = find(rendered("gateway"), "Deployment", "animals-mlcls-gateway")
    composed, container = services["gateway"], container_of(gateway)
    assert container["image"] == composed["image"]
    assert (container["command"], container["args"]) == (composed["entrypoint"], composed["command"])
    environment = {each["name"]: each["value"] for each in container["env"]}
    for name in ("SECRETS_FOLDER", "RUN_FOLDER"):
        assert environment[name] == composed["environment"][name]
    script = (ROOT / "docker/gateway/start.sh").read_text()
    schema = json.loads((CHART / "values.schema.json").read_text())["properties"]["gateway"]["properties"]["env"]
    for name in schema["propertyNames"]["enum"]:
        assert f"${{{name}:=" in script


def test_the_gateway_runs_the_files_of_docker() -> None:
    """The chart's folder is a link: Helm reads through it, and a package contains the files."""
    assert (CHART / "gateway").resolve() == ROOT / "docker" / "gateway"
    data = find(rendered("gateway"), "ConfigMap", "animals-mlcls-gateway")["data"]
    assert data == {path.name: path.read_text() for path in (ROOT / "docker/gateway").iterdir()}


def test_a_package_is_complete(tmp_path: Path) -> None:
    process = subprocess.run(
        [find_program("helm", "helm"), "package", CHART, "--destination", tmp_path], capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    (package,) = tmp_path.iterdir()
    values = COMBINATIONS["gateway"]
    packaged, plain = (run_helm("template", values, chart=chart).stdout for chart in (package, CHART))
    assert packaged == plain != ""


def test_the_versions_are_those_of_the_project() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == mlcls.__version__
    runtime = kserve_objects()[1]
    assert runtime["spec"]["containers"][0]["image"].endswith(f":{mlcls.__version__}")


@pytest.mark.parametrize("name", ["defaults", "kserve"])
def test_only_mlcls_serve_and_slow_probes_restart_a_pod(name: str) -> None:
    spec = pod_specs()["defaults/animals-mlcls" if name == "defaults" else "kserve"]
    (container,) = spec["containers"]
    serve = make_parser("mlcls").parse_args(container["args"])
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        command = container[probe]["exec"]["command"]
        health = make_parser("mlcls").parse_args(command[1:])
        assert container[probe]["timeoutSeconds"] > 2 * health.timeout * max(len(health.models), 1)
        assert health.url == f"127.0.0.1:{serve.http_port}"
        assert set(health.models) <= set(serve.models)
    startup, liveness = container["startupProbe"], container["livenessProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] > serve.ready_timeout_s + 60
    detected_s = serve.hang_timeout_s + 2 * (serve.probe_interval_s + serve.probe_timeout_s)
    assert liveness["periodSeconds"] * liveness["failureThreshold"] > detected_s
    stop_s = 10 + serve.drain_timeout_s + 10
    assert container["lifecycle"] == {"preStop": {"exec": {"command": ["sleep", "10"]}}}
    assert spec["terminationGracePeriodSeconds"] > stop_s


def test_services_and_selectors_find_the_pods() -> None:
    objects = rendered("gateway")
    ports = {
        (each["metadata"]["name"], port["name"])
        for each in objects
        if each["kind"] == "Service"
        for port in each["spec"]["ports"]
    }
    assert ports == {
        *(("animals-mlcls", port) for port in ("http", "grpc")),
        *(("animals-mlcls-headless", port) for port in ("http", "grpc")),
        ("animals-mlcls-gateway", "https"),
    }
    labels = {
        each["metadata"]["name"]: each["spec"]["template"]["metadata"]["labels"].items()
        for each in objects
        if each["kind"] == "Deployment"
    }
    for each in objects:
        if each["kind"] in ("Service", "Deployment", "PodDisruptionBudget", "NetworkPolicy", "PodMonitor"):
            selector = each["spec"].get("podSelector") or each["spec"]["selector"]
            found = {name for name, own in labels.items() if selector.get("matchLabels", selector).items() <= own}
            kind, name = each["kind"], each["metadata"]["name"]
            if kind == "PodMonitor":
                assert found == labels.keys()
            else:
                assert found == {"animals-mlcls-gateway" if name.endswith("gateway") else "animals-mlcls"}, name
    gateway = container_of(find(objects, "Deployment", "animals-mlcls-gateway"))
    assert {"name": "TRITON_HOST", "value": "animals-mlcls-headless"} in gateway["env"]
    assert find(objects, "Service", "animals-mlcls-headless")["spec"]["clusterIP"] == "None"


def test_a_canary_gets_requests_of_the_main_release() -> None:
    process = run_helm("template", {"gateway": GATEWAY})
    main = [each for each in yaml.safe_load_all(process.stdout.replace("animals", "main")) if each]
    canary = rendered("canary")
    assert not [each for each in canary if each["kind"] == "Service"]
    labels = find(canary, "Deployment", "animals-mlcls")["spec"]["template"]["metadata"]["labels"]
    for name in ("main-mlcls", "main-mlcls-headless"):
        assert find(main, "Service", name)["spec"]["selector"].items() <= labels.items()
    own = find(main, "Deployment", "main-mlcls")["spec"]["selector"]["matchLabels"]
    assert not own.items() <= labels.items(), "each release has its own pods"
    (peer, *_) = find(canary, "NetworkPolicy", "animals-mlcls")["spec"]["ingress"][0]["from"]
    gateway = find(main, "Deployment", "main-mlcls-gateway")["spec"]["template"]["metadata"]["labels"]
    assert peer["podSelector"]["matchLabels"].items() <= gateway.items()


def test_what_the_combinations_are_for() -> None:
    gpu = container_of(find(rendered("gpu"), "Deployment", "animals-mlcls"))
    assert gpu["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "nvidia.com/gpu" not in json.dumps(rendered("defaults"))
    for mode, kind in (("hpa", "HorizontalPodAutoscaler"), ("keda", "ScaledObject")):
        kinds = [each["kind"] for each in rendered(mode)]
        assert kind in kinds and kind not in [each["kind"] for each in rendered("defaults")]
        assert "replicas" not in find(rendered(mode), "Deployment", "animals-mlcls")["spec"]
    assert "NetworkPolicy" not in {each["kind"] for each in rendered("open")}
    (policy,) = (each for each in rendered("closed") if each["kind"] == "NetworkPolicy")
    assert len(policy["spec"]["ingress"]) == 1 and len(policy["spec"]["ingress"][0]["from"]) == 1
    assert policy["spec"]["egress"] == [{"ports": [{"port": 4318}]}]
    (fetch,) = find(rendered("fetch"), "Deployment", "animals-mlcls")["spec"]["template"]["spec"]["initContainers"]
    assert fetch["command"] == FETCH["command"]
    assert fetch["envFrom"] == [{"secretRef": {"name": "store"}}]


def queries() -> dict[str, str]:
    """What autoscalers ask Prometheus."""
    (trigger,) = find(rendered("keda"), "ScaledObject", "animals-mlcls")["spec"]["triggers"]
    (metric,) = kserve_objects()[0]["spec"]["predictor"]["autoScaling"]["metrics"]
    documented = (ROOT / "docs/how-to/kubernetes.md").read_text()
    (adapter,) = re.findall(r"metricsQuery: '(.+)'", documented)
    matchers = 'namespace="vision",app_kubernetes_io_instance="animals"'
    adapter = adapter.replace("<<.LabelMatchers>>", matchers).replace("<<.GroupBy>>", "namespace")
    return {"keda": trigger["metadata"]["query"], "kserve": metric["external"]["metric"]["query"], "hpa": adapter}


@pytest.mark.parametrize("name", ["keda", "kserve", "hpa"])
def test_the_autoscaler_counts_the_requests_that_wait(name: str, tmp_path: Path) -> None:
    """In the steps of this release, in all versions; not in ensembles, which have no queue of their own."""
    expression = queries()[name]
    place = 'namespace="vision",app_kubernetes_io_instance="animals",pod="animals-mlcls-1"'
    other = 'namespace="vision",app_kubernetes_io_instance="dogs",pod="dogs-mlcls-1"'
    if name == "kserve":
        place, other = 'namespace="default",pod="mlcls-predictor-1-a"', 'namespace="default",pod="dogs-predictor-1-a"'
    rises = {
        f'{place},model="animals"': 900,
        f'{place},model="animals_engine"': 30,  # seconds of waiting in 15 s
        f'{place},model="animals_engine_2"': 15,
        f'{place},model="animals_preprocess_12"': 15,
        f'{other},model="dogs_engine"': 900,
    }
    test = {
        "rule_files": [],
        "evaluation_interval": "15s",
        "tests": [
            {
                "interval": "15s",
                "input_series": [
                    {"series": f"nv_inference_queue_duration_us{{{labels}}}", "values": f"0+{seconds * 10**6}x20"}
                    for labels, seconds in rises.items()
                ],
                "promql_expr_test": [
                    {
                        "expr": expression,
                        "eval_time": "4m",
                        "exp_samples": [{"labels": '{namespace="vision"}' if name == "hpa" else "{}", "value": 4}],
                    }
                ],
            }
        ],
    }
    path = tmp_path / "test.yml"
    path.write_text(yaml.safe_dump(test))
    process = subprocess.run(
        [find_program("promtool", "prometheus"), "test", "rules", path], capture_output=True, text=True
    )
    assert process.returncode == 0, process.stdout + process.stderr
