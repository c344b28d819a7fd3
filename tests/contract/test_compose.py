"""docker-compose.yml, the Dockerfile and what they mount, read by the tools that will read them, without an engine."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlcls.backends.tallies import DEFAULT_LABEL_LIMIT
from mlcls.repository.names import ENGINE_SUFFIX, step_name
from support.compose import COMPOSE_FILE, compose, configure
from support.processes import ROOT

TOOLS = Path(sys.executable).parent
DOCKERFILE = ROOT / "docker" / "Dockerfile"

# Service, and how much it may write to: everything else is read-only.
SERVICES = {"serve-cpu", "serve-gpu", "build-engine", "gateway", "prometheus", "grafana"}
WRITABLE = {"build-engine": {"/models"}, "prometheus": {"/prometheus"}, "grafana": {"/var/lib/grafana"}}
PROFILES = {
    "cpu": {"serve-cpu"},
    "gpu": {"serve-gpu"},
    "build": {"build-engine"},
    "gateway": {"gateway"},
    "monitoring": {"prometheus", "grafana"},
}


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found: dict[str, Any] = configure("*")["services"]
    assert found.keys() == SERVICES
    return found


def test_the_compose_file_the_dockerfile_and_the_scripts_lint() -> None:
    scripts = sorted((ROOT / "docker").rglob("*.sh"))
    assert len(scripts) >= 3
    linters: list[list[str | Path]] = [
        ["check-jsonschema", "--builtin-schema", "vendor.compose-spec", COMPOSE_FILE],
        ["hadolint", DOCKERFILE],
        ["shellcheck", *scripts],
    ]
    for linter, *arguments in linters:
        process = subprocess.run([TOOLS / linter, *arguments], capture_output=True, text=True)
        assert process.returncode == 0, process.stdout + process.stderr


def test_profiles_and_models() -> None:
    for profile, services in PROFILES.items():
        assert configure(profile)["services"].keys() == services
    assert configure().get("services", {}) == {}, "without a profile nothing starts"
    command = configure("cpu", MLCLS_MODELS="ResNet50_ML animals")["services"]["serve-cpu"]["command"]
    assert command[-2:] == ["ResNet50_ML", "animals"]


@pytest.mark.parametrize("environment", [{}, {"MLCLS_ADMIN_KEY": ""}])
def test_there_is_no_default_key(environment: dict[str, str]) -> None:
    process = compose("--profile=cpu", "config", **environment)
    assert process.returncode != 0
    assert "required variable MLCLS_ADMIN_KEY is missing a value: expected a key of your own" in process.stderr
    assert 'export MLCLS_ADMIN_KEY="$(openssl rand -hex 32)"' in process.stderr


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_each_service_is_confined(services: dict[str, Any], name: str) -> None:
    service = services[name]
    assert service["read_only"] is True
    assert service["init"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service and "cap_add" not in service and "pid" not in service
    assert re.fullmatch(r"[1-9]\d*:\d+", service["user"]), "not root"
    assert service["restart"] == ("no" if name == "build-engine" else "unless-stopped")
    assert service["logging"] == {"driver": "json-file", "options": {"max-size": "10m", "max-file": "5"}}
    limits = service["deploy"]["resources"]["limits"]
    assert limits.keys() == {"cpus", "memory", "pids"}
    assert service["stop_grace_period"]
    for mount in service["volumes"]:
        writable = mount["target"] in WRITABLE.get(name, set())
        assert mount.get("read_only", False) is not writable, mount
        assert mount["type"] == "volume" or mount["bind"]["create_host_path"] is False, mount
        source = Path(mount["source"])
        assert mount["type"] == "volume" or source.is_dir() or not source.is_relative_to(ROOT / "docker"), mount
    assert "docker.sock" not in json.dumps(service)


def test_every_port_is_on_loopback(services: dict[str, Any]) -> None:
    ports = {(name, port["target"]): port["host_ip"] for name in SERVICES for port in services[name].get("ports", [])}
    assert set(ports.values()) == {"127.0.0.1"}
    assert ports.keys() >= {("serve-cpu", 8000), ("serve-gpu", 8001), ("gateway", 8443), ("grafana", 3000)}
    opened = configure("*", MLCLS_GATEWAY_ADDRESS="0.0.0.0")["services"]
    assert {name for name in SERVICES for port in opened[name].get("ports", []) if port["host_ip"] != "127.0.0.1"} == {
        "gateway"
    }, "the gateway alone can be opened"


@pytest.mark.parametrize(("profile", "target"), [("cpu", "embedded"), ("gpu", "gpu")])
def test_what_serves(services: dict[str, Any], profile: str, target: str) -> None:
    service = services[f"serve-{profile}"]
    assert " ".join(service["command"]) == (
        f"serve --tritonserver /opt/tritonserver --target {target} --host 0.0.0.0 --log-file - PP-LCNet_x1_0_ML"
    )
    assert int(service["shm_size"]) >= 1 << 30, "Docker's 64 MB are too small for the images in flight"
    assert service["environment"] == {
        "MLCLS_ADMIN_KEY": "key",
        "MLCLS_LOG_FORMAT": "text",
        "MLCLS_LABEL_METRICS": str(DEFAULT_LABEL_LIMIT),
    }
    assert service["networks"]["serving"]["aliases"] == ["triton"]
    devices = service["deploy"]["resources"].get("reservations", {}).get("devices", [])
    assert [device["capabilities"] for device in devices] == ([["gpu"]] if target == "gpu" else [])
    assert service["stop_grace_period"] == "1m0s", "mlcls waits 40 s for the requests in flight"


def test_engines_are_built_in_the_image_that_serves(services: dict[str, Any]) -> None:
    serving, building = services["serve-gpu"], services["build-engine"]
    assert serving["build"]["args"] == building["build"]["args"]
    assert (serving["build"]["target"], building["build"]["target"]) == ("serve", "build-engine")
    assert building["entrypoint"] == ["/opt/mlcls/bin/mlcls", "build-engine", "--engine", "tensorrt"]
    assert building["network_mode"] == "none"
    assert building["deploy"]["resources"]["reservations"] == serving["deploy"]["resources"]["reservations"]


def test_every_image_is_pinned_in_one_place(services: dict[str, Any]) -> None:
    pins = dict(
        line.split("=", 1) for line in (ROOT / ".env").read_text().splitlines() if line and not line.startswith("#")
    )
    assert pins["TRITON_IMAGE"] == "nvcr.io/nvidia/tritonserver:26.11-py3"
    for name, image in pins.items():
        assert name.endswith("_IMAGE"), "nothing else, and no secret, belongs into .env"
        assert re.search(r":v?\d+\.\d+", image), f"{image} has no version"
    built = {"mlcls-serve:local", "mlcls-build-engine:local"}
    assert {service["image"] for service in services.values()} <= {*pins.values(), *built}
    for path in (COMPOSE_FILE, DOCKERFILE):
        for image in pins.values():
            assert image.split(":")[0] not in path.read_text()
    process = subprocess.run([TOOLS / "envoy", "--version"], capture_output=True, text=True)
    version = re.search(r"/(\d+\.\d+)\.\d+/", process.stdout)
    assert version is not None
    assert f"envoyproxy/envoy:v{version[1]}." in pins["ENVOY_IMAGE"], "the gateway of the tests is that of the image"


def test_the_images_run_as_nobody_special() -> None:
    stages = re.split(r"^FROM ", DOCKERFILE.read_text(), flags=re.MULTILINE)[1:]
    final = {name: stage for stage in stages for name in ("serve", "build-engine") if f" AS {name}\n" in stage}
    assert final.keys() == {"serve", "build-engine"}
    for stage in final.values():
        assert "\nUSER 1000:1000\n" in stage
        assert "HEALTHCHECK" in stage
        assert "pip" not in stage.replace("--without-pip", "") and "apt-get" not in stage, "no build tools"


def test_the_build_context_holds_what_is_copied() -> None:
    """.dockerignore lets in what the Dockerfile and install.sh read, and no weights, secrets or environments."""
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for path in ("docker/install.sh", "docker/check_tensorrt.py", "requirements/triton.txt"):
        assert any(Path(path).match(pattern) for pattern in allowed), path
    assert {"src", "python_backends", "pyproject.toml", "README.md", "LICENSE"} <= set(allowed)
    assert not [pattern for pattern in allowed if pattern.startswith(("model", "secrets", "output", "."))]


def test_provisioning() -> None:
    grafana = ROOT / "docker" / "grafana"
    (source,) = yaml.safe_load((grafana / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    assert (source["uid"], source["type"], source["url"]) == ("prometheus", "prometheus", "http://prometheus:9090")
    (provider,) = yaml.safe_load((grafana / "provisioning/dashboards/mlcls.yml").read_text())["providers"]
    mounts = configure("monitoring")["services"]["grafana"]["volumes"]
    targets = {mount["target"]: mount["source"] for mount in mounts}
    assert targets[provider["options"]["path"]] == str(grafana / "dashboards")
    addresses = [yaml.safe_load(path.read_text()) for path in sorted((ROOT / "docker/prometheus/targets").iterdir())]
    assert addresses == [[{"targets": ["gateway:9902"]}], [{"targets": ["triton:8002"]}]]


def test_the_dashboard() -> None:
    dashboard = json.loads((ROOT / "docker/grafana/dashboards/mlcls.json").read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    covered: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        columns, rows = range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        cells = {(x, y) for x in columns for y in rows}
        assert not cells & covered, f"{panel['title']} lies on another panel"
        covered |= cells
        assert place["x"] + place["w"] <= 24
        assert panel["title"]
        if panel["type"] == "row":
            continue
        assert panel["datasource"] == {"type": "prometheus", "uid": "prometheus"}
        assert panel["fieldConfig"]["defaults"]["unit"]
        for target in panel["targets"]:
            assert target["expr"] and target["legendFormat"] and target["datasource"] == panel["datasource"]
            for pattern in re.findall(r'model=~"([^"]+)"', target["expr"].replace("$model", "animals")):
                names = {step_name("animals", ENGINE_SUFFIX, version) for version in (1, 2, 10)}
                assert {bool(re.fullmatch(pattern, name)) for name in names} <= {pattern != "animals"}, pattern
    (variable,) = dashboard["templating"]["list"]
    assert re.search(variable["regex"].strip("/"), "animals")
    assert not re.search(variable["regex"].strip("/"), step_name("animals", ENGINE_SUFFIX, 2))
    titles = " ".join(panel["title"] for panel in panels)
    words = ("Images per second", "Failed", "Queue time", "Compute time", "Batch size", "waiting", "Memory", "GPU")
    for wanted in words:
        assert wanted in titles
