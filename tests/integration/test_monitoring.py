"""Prometheus on the real server and the gateway, with the files of the container; every panel has data."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlcls.base.processes import free_ports
from mlcls.server.http_api import HttpApi, HttpStatusError, NoAnswerError
from mlcls.server.process import TritonServer
from mlcls_client import MlclsClientError, create_model
from support.gateway_process import Gateway, make_key, run_gateway
from support.helm import find, render
from support.metrics_page import wait_for_metrics
from support.processes import ROOT
from support.programs import find_program
from support.served_models import SMALL_LABELS, SmallModels
from support.settling import wait_for

MODEL = "small_with_sigmoid"
KEY = make_key()
CONFIGURATION = ROOT / "docker" / "prometheus"
# What the chart's PodMonitor adds to the metrics.
POD_LABELS = {"namespace": "vision", "app_kubernetes_io_instance": "animals"}
DASHBOARD = ROOT / "docker" / "grafana" / "dashboards" / "mlcls.json"


def panels(dashboard: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Row, panel and expression, with the variables that Grafana fills in filled in."""
    row = ""
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            row = panel["title"]
        for target in panel.get("targets", []):
            expression = target["expr"].replace("$__rate_interval", "30s").replace("$model", MODEL)
            assert "$" not in expression
            yield row, panel["title"], expression


def rules() -> list[dict[str, Any]]:
    """All alerts and recorded expressions."""
    groups = yaml.safe_load((CONFIGURATION / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


class Prometheus:
    """A running Prometheus."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, **parameters: str) -> Any:
        answer = json.loads(HttpApi(self.url).request(f"{path}?{urllib.parse.urlencode(parameters)}", 10))
        assert answer["status"] == "success"
        return answer["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series of an expression, now."""
        result: list[dict[str, Any]] = self.get("/api/v1/query", query=expression)["result"]
        return result


@pytest.fixture(scope="module")
def gateway(small_server: TritonServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with run_gateway(tmp_path_factory.mktemp("gateway"), small_server, {"alice": KEY}) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def prometheus(
    small_server: TritonServer, gateway: Gateway, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    program = find_program("prometheus", "prometheus")
    folder = tmp_path_factory.mktemp("prometheus")
    shutil.copytree(CONFIGURATION, folder / "etc")  # the same files; the addresses alone are others
    for name, port in (("triton", small_server.options.metrics_port), ("gateway", gateway.metrics_port)):
        targets = [{"targets": [f"127.0.0.1:{port}"], "labels": POD_LABELS}]
        (folder / "etc" / "targets" / f"{name}.yml").write_text(yaml.safe_dump(targets))
    (port,) = free_ports(1)
    options = [f"--config.file={folder}/etc/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, *options, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=subprocess.STDOUT
        )
    server = Prometheus(f"http://127.0.0.1:{port}")

    def is_up() -> bool:
        assert process.poll() is None, (folder / "log").read_text()
        with contextlib.suppress(NoAnswerError, HttpStatusError):
            return [series["value"][1] for series in server.query("up")] == ["1", "1"]
        return False

    try:
        wait_for(is_up, 60)
        yield server
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="module")
def busy_prometheus(
    prometheus: Prometheus, gateway: Gateway, small_models: SmallModels, sample_images: list[Path]
) -> Iterator[Prometheus]:
    """Prometheus while a client asks through the gateway, mostly for what it gets."""
    stop = threading.Event()
    photos = [str(path) for path in sample_images[:4]]

    def ask() -> None:
        model = create_model(MODEL, url=gateway.url, ssl=gateway.certificate, api_key=KEY)
        unreadable = b"not an image"
        while not stop.wait(0.2):
            list(model.predict(photos, batch_size=2))
            for request in (
                lambda: list(model.predict(unreadable)),
                lambda: gateway.request("GET", "/v2/models/stats", KEY),
                lambda: gateway.request("GET", "/v2"),
            ):
                with contextlib.suppress(MlclsClientError):
                    request()

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        wait_for(lambda: len(prometheus.query(f'rate(nv_inference_count{{model="{MODEL}"}}[30s]) > 0')) == 1, 60)
        yield prometheus
    finally:
        stop.set()
        thread.join()


def test_the_configuration_is_valid() -> None:
    process = subprocess.run(
        [find_program("promtool", "prometheus"), "check", "config", CONFIGURATION / "prometheus.yml"],
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    assert f"SUCCESS: {len(rules())} rules found" in process.stdout


@pytest.mark.parametrize("tests", ["alerts_test.yml", "drift_test.yml"])
def test_the_alerts(tests: str) -> None:
    process = subprocess.run(
        [find_program("promtool", "prometheus"), "test", "rules", tests],
        cwd=CONFIGURATION,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stdout + process.stderr


def test_every_alert_is_seen_to_fire() -> None:
    fired = {
        case["alertname"]
        for tests in ("alerts_test.yml", "drift_test.yml")
        for test in yaml.safe_load((CONFIGURATION / tests).read_text())["tests"]
        for case in test.get("alert_rule_test", [])
        if case.get("exp_alerts")
    }
    assert fired == {rule["alert"] for rule in rules() if "alert" in rule}


@pytest.mark.usefixtures("busy_prometheus")
def test_every_metric_exists(small_server: TritonServer, gateway: Gateway) -> None:
    """Those of the dashboard and of the alerts, on the real server and the gateway."""
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    expressions = [rule["expr"] for rule in rules()]
    expressions += [expression for row, _, expression in panels(json.loads(DASHBOARD.read_text())) if row != "GPU"]
    labels = re.compile(r"\{[^}]*\}|\b(?:by|without|on|ignoring)\s*\([^)]*\)")
    used = {
        name
        for expression in expressions
        for name in re.findall(r"\b(?:nv|mlcls|envoy)[_:][\w:]+", labels.sub("", expression))
    }
    assert len(used) > 30
    page_of_gateway = HttpApi(f"127.0.0.1:{gateway.metrics_port}").request("/metrics", 10).decode()
    of_gateway = set(re.findall(r"^\w+", page_of_gateway, flags=re.MULTILINE))
    page = wait_for_metrics(small_server, lambda page: "mlcls_label_scores_total" in page.names)
    assert used - page.names - of_gateway - recorded == set()


def test_every_panel_has_data(busy_prometheus: Prometheus) -> None:
    expressions = list(panels(json.loads(DASHBOARD.read_text())))
    assert len(expressions) > 30
    gpu = [(panel, expression) for row, panel, expression in expressions if row == "GPU"]
    # what the rules record every five minutes is tested with promtool
    others = [(panel, expression) for row, panel, expression in expressions if row not in ("GPU", "Drift")]

    def without_data() -> list[tuple[str, str]]:
        return [
            (panel, expression)
            for panel, expression in others
            if not any(series["value"][1] != "NaN" for series in busy_prometheus.query(expression))
        ]

    with contextlib.suppress(AssertionError):
        wait_for(lambda: not without_data(), 40)
    assert without_data() == []
    for _, expression in gpu:
        assert re.fullmatch(r"nv_gpu_\w+", expression)
        assert busy_prometheus.query(expression) == [], "no GPU here; the names are those of Triton's documentation"


def test_the_autoscaler_of_the_chart_sees_that_requests_wait(busy_prometheus: Prometheus) -> None:
    objects = render({"autoscaling": {"mode": "keda", "prometheus": busy_prometheus.url}}, namespace="vision")
    (trigger,) = find(objects, "ScaledObject", "animals-mlcls")["spec"]["triggers"]

    def is_seen() -> bool:
        (series,) = busy_prometheus.query(trigger["metadata"]["query"])
        return float(series["value"][1]) > 0

    wait_for(is_seen, 60)


def test_the_figures_are_right(busy_prometheus: Prometheus) -> None:
    def value(title: str, **labels: str) -> float:
        expression = next(
            expression for _, panel, expression in panels(json.loads(DASHBOARD.read_text())) if panel == title
        )
        series = [one for one in busy_prometheus.query(expression) if labels.items() <= one["metric"].items()]
        assert len(series) == 1, (title, series)
        return float(series[0]["value"][1])

    images, requests = value("Images per second per model", model=MODEL), value("Requests per second per model")
    assert images == pytest.approx(2 * requests, rel=0.5), "two images a request"
    assert 1 <= value("Batch size of the engine", model=f"{MODEL}_engine") <= 4
    for step in ("preprocess", "engine", "postprocess"):
        compute = value("Compute time per step", model=f"{MODEL}_{step}")
        assert 0 < compute < value("Request latency, mean", model=MODEL)
    assert value("Failures per second by reason", model=MODEL, reason="OTHER") > 0
    assert 0 < value("Failed requests") < 1
    assert value("Images per second by outcome", model=MODEL, status="ok") == pytest.approx(images, rel=0.5)
    assert value("Refused images per second by reason", model=MODEL, reason="unknown_format") > 0
    assert 0 < value("Share of images refused", model=MODEL) < 0.5
    assert 0 < value("Decoding time, mean", model=MODEL) < 1
    assert 0 <= value("Images without a label", model=MODEL) <= 1
    assert 0 <= value("Labels per image", model=MODEL) <= len(SMALL_LABELS)
    assert value("Answers per second by class", envoy_response_code_class="4") > 0


def test_the_alerts_are_loaded_and_quiet(busy_prometheus: Prometheus) -> None:
    def loaded() -> list[dict[str, Any]]:
        """All but those of drift, which are evaluated every five minutes only."""
        first, drift = busy_prometheus.get("/api/v1/rules")["groups"]
        assert (first["name"], drift["name"]) == ("mlcls", "mlcls-drift")
        found: list[dict[str, Any]] = first["rules"]
        return found

    wait_for(lambda: all(rule["health"] != "unknown" for rule in loaded()))
    names = [rule["alert"] for rule in yaml.safe_load((CONFIGURATION / "alerts.yml").read_text())["groups"][0]["rules"]]
    assert {rule["name"]: rule["health"] for rule in loaded()} == dict.fromkeys(names, "ok")
    assert all(rule["state"] != "firing" for rule in loaded())
