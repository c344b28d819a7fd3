"""What the real server tells: counts in /metrics, lines in the log, spans."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from mlcls.base.processes import free_ports
from mlcls.server.health_probe import HealthProbe
from mlcls.server.process import TritonServer
from mlcls_client import create_model
from support.metrics_page import MetricsPage, read_settled_metrics, wait_for_metrics
from support.otlp_receiver import OtlpReceiver, Span, receive_spans
from support.processes import mlcls_command
from support.serve_process import port_options
from support.served_models import SmallModels
from support.settling import wait_for
from support.triton_request import ask, make_input

MODEL = "small_with_sigmoid"
# The exporter sends spans once; what a busy collector does not take in time is lost, and another request is traced.
TRACE_IDS = tuple(f"0af7651916cd43dd8448eb211c80319{digit}" for digit in "abc")
PARENT_ID = "b7ad6b7169203331"
SPAN_NAMES = {"InferRequest", MODEL, *(f"{MODEL}_{step}" for step in ("preprocess", "engine", "postprocess"))}
HOSTILE = b"x\n2026-11-28T07:00:52Z E 1 main.cc:1] forged\r\x1b[31m\x00"


def counted(before: MetricsPage, after: MetricsPage, name: str, **labels: str) -> float:
    return after.sum(name, model=MODEL, **labels) - before.sum(name, model=MODEL, **labels)


def test_every_image_is_counted_once(small_server: TritonServer, sample_images: list[Path]) -> None:
    """Over two preprocess processes, in single requests and batches, from threads."""
    photos = [path.read_bytes() for path in sample_images[:4]]
    before = read_settled_metrics(small_server)

    def send(index: int) -> None:
        ask(small_server, MODEL, [photos[index % 4]])
        ask(small_server, MODEL, [b"", photos[0], b"no image", photos[1][:-40], photos[2]])
        with pytest.raises(InferenceServerException):
            ask(small_server, MODEL, [b"no image", b""])
        with pytest.raises(InferenceServerException):
            ask(small_server, MODEL, [photos[3], photos[3], b""], threshold="none")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(send, range(40)))
    wait_for_metrics(
        small_server,
        lambda page: (
            counted(before, page, "mlcls_images_total") >= 40 * 11
            and counted(before, page, "mlcls_images_total", status="ok") >= 120
        ),
    )
    after = read_settled_metrics(small_server)
    images = {
        reason: counted(before, after, "mlcls_images_total", status=status, reason=reason)
        for status, reason in (
            ("ok", ""), ("refused", "empty"), ("refused", "unknown_format"), ("refused", "threshold"),
        )
    }  # fmt: skip
    assert images == {"": 120, "empty": 120, "unknown_format": 80, "threshold": 80}
    assert counted(before, after, "mlcls_images_total", status="refused") == 120 + 80 + 80 + 40, "40 truncated ones"
    assert counted(before, after, "mlcls_images_total", status="failed") == 0
    assert counted(before, after, "mlcls_decode_seconds_count") == 200
    assert counted(before, after, "mlcls_decode_seconds_bucket", le="+Inf") == 200
    assert 0 < counted(before, after, "mlcls_decode_seconds_sum") < 200
    assert counted(before, after, "mlcls_top_scores_total") == 120


class LoggingServer:
    """`mlcls serve` with its log as JSON on standard output and all requests traced."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, url: str, receiver: OtlpReceiver) -> None:
        self.process, self.log, self.url, self.receiver = process, log, url, receiver

    def records(self) -> list[dict[str, Any]]:
        """All whole lines so far; each must parse."""
        return [json.loads(line) for line in self.log.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]

    def wait_for(self, **fields: Any) -> dict[str, Any]:
        """The first line with these fields."""

        def find() -> dict[str, Any]:
            return next((record for record in self.records() if fields.items() <= record.items()), {})

        return wait_for(find, 60, self.log.read_text)

    def wait_for_spans(self, trace_id: str) -> dict[str, Span]:
        """The spans of a trace by name, once all are there; fewer where they do not come."""
        deadline = time.monotonic() + 20
        while True:
            spans = {span.name: span for span in self.receiver.of(trace_id)}
            if spans.keys() >= SPAN_NAMES or time.monotonic() > deadline:
                return spans
            time.sleep(0.05)


@pytest.fixture(scope="module")
def logging_server(small_models: SmallModels, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoggingServer]:
    log = tmp_path_factory.mktemp("log") / "stdout"
    urls = [f"127.0.0.1:{port}" for port in free_ports(3)]
    with receive_spans() as receiver, log.open("wb") as stdout:
        options = [*port_options(*urls), "--log-file=-", f"--trace-url={receiver.url}", "--trace-rate=1"]
        command = mlcls_command("serve", MODEL, "--repository", small_models.repository, *options)
        environment = {**os.environ, "MLCLS_LOG_FORMAT": "json", "OTEL_BSP_SCHEDULE_DELAY": "200"}
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stdout, env=environment)
        server = LoggingServer(process, log, urls[1], receiver)
        try:
            server.wait_for(logger="mlcls", message=f"Loading {MODEL} ...")
            ready = f"Ready: {MODEL}"
            wait_for(lambda: any(record["message"].startswith(ready) for record in server.records()), 60, log.read_text)
            yield server
        finally:
            process.terminate()
            process.wait(60)


def test_lines_of_the_server_are_json(logging_server: LoggingServer) -> None:
    loaded = logging_server.wait_for(message=f"successfully loaded '{MODEL}'")
    assert (loaded["level"], loaded["logger"]) == ("INFO", "tritonserver")
    assert loaded["source"].startswith("model_lifecycle.cc:")
    assert loaded["pid"] in [record.get("pid") for record in logging_server.records()]
    assert any("| server_version" in record["message"] for record in logging_server.records()), "a table, in one line"


def test_a_refused_request_is_told_with_its_id(logging_server: LoggingServer) -> None:
    request_id = 'r-7\n"{\x1b[31m犬'
    with create_model(MODEL, url=logging_server.url) as model:
        results = list(model.predict([HOSTILE], on_error="yield", request_id="hostile-bytes"))
        assert results[0].error is not None
    found = logging_server.wait_for(event="refused", reason="unknown_format")
    assert found["request_id"].startswith("hostile-bytes")
    assert (found["model"], found["version"], found["images"], found["refused"]) == (MODEL, "1", 1, 1)
    assert (found["level"], found["logger"]) == ("WARNING", "tritonserver")
    assert "forged" not in [record["message"] for record in logging_server.records()]
    ask_with_id(logging_server.url, [b""], request_id)
    assert logging_server.wait_for(event="refused", reason="empty")["request_id"] == request_id
    assert all(byte == 0x0A or 0x20 <= byte < 0x7F for byte in logging_server.log.read_bytes())


def ask_with_id(url: str, images: list[bytes], request_id: str) -> None:
    with tritonclient.grpc.InferenceServerClient(url) as client, contextlib.suppress(InferenceServerException):
        client.infer(MODEL, [make_input(images)], request_id=request_id)


def test_spans_are_children_of_the_callers(logging_server: LoggingServer, sample_images: list[Path]) -> None:
    for trace_id in TRACE_IDS:
        headers = {"traceparent": f"00-{trace_id}-{PARENT_ID}-01"}
        with create_model(MODEL, url=logging_server.url, headers=headers) as model:
            list(model.predict(str(sample_images[0]), request_id="traced"))
        spans = logging_server.wait_for_spans(trace_id)
        if spans.keys() >= SPAN_NAMES:
            break
    assert spans.keys() >= SPAN_NAMES, logging_server.receiver.spans
    assert spans["InferRequest"].parent_id == PARENT_ID
    assert spans[MODEL].parent_id == spans["InferRequest"].span_id
    for step in ("preprocess", "engine", "postprocess"):
        span = spans[f"{MODEL}_{step}"]
        assert span.parent_id == spans[MODEL].span_id
        assert span.attributes["triton.request_id"].startswith("traced")
        assert span.service == "mlcls"


def test_the_probes_of_mlcls_serve_are_not_counted(small_server: TritonServer) -> None:
    before = read_settled_metrics(small_server)
    probe = HealthProbe(small_server.http_url, small_server.metrics_url, 10)
    assert [probe.ask(MODEL).verdict for _ in range(3)] == ["answers"] * 3
    with pytest.raises(InferenceServerException):
        ask(small_server, MODEL, [b""])
    after = wait_for_metrics(
        small_server, lambda page: counted(before, page, "mlcls_images_total", reason="empty") == 1
    )
    assert counted(before, after, "mlcls_images_total", status="ok") == 0
    assert counted(before, after, "mlcls_decode_seconds_count") == 0
    assert (
        after.sum("nv_inference_request_success", model=MODEL)
        >= before.sum("nv_inference_request_success", model=MODEL) + 3
    )
