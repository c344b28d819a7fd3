"""How the health probe judges a server's answers."""

from __future__ import annotations

import json
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlcls.backends.pulse import Pulse
from mlcls.base.processes import free_ports
from mlcls.cli import main
from mlcls.images.transforms import preprocess
from mlcls.model.spec import ImageTransform
from mlcls.server.health_probe import Health, HealthProbe, make_picture
from support.quiet_http import QuietHandler, serve_http

TIMEOUT_S = 0.5


class FakeTriton:
    """Answers probes as configured, and counts requests of others in its metrics.

    Attributes:
        status: HTTP status of the answer to a probe; None for no answer at all.
        text: The status of the image in a good answer, else the reason.
        others_per_s: How many requests of others it answers.
        engine_metrics: Lines of the engine's metrics.
        pictures: The pictures of the probes.
        own: How many probes it answered.
    """

    def __init__(self) -> None:
        self.status: int | None = 200
        self.text = "OK"
        self.others_per_s = 0.0
        self.engine_metrics = ""
        self.pictures: list[bytes] = []
        self.own = 0
        fake = self

        class Handler(QuietHandler):
            def do_GET(self) -> None:  # noqa: N802  # http.server's name
                count = int(fake.others_per_s * (time.monotonic() - fake._began_s)) + fake.own
                text = f'nv_inference_request_success{{model="cat",version="1"}} {7 + count}\n{fake.engine_metrics}'
                self.reply(200, text.encode())

            def do_POST(self) -> None:  # noqa: N802  # http.server's name
                body = self.rfile.read(int(self.headers["Content-Length"]))
                header = json.loads(body[: int(self.headers["Inference-Header-Content-Length"])])
                tensor = body[int(self.headers["Inference-Header-Content-Length"]) :]
                (length,) = struct.unpack_from("<I", tensor)
                assert length + 4 == len(tensor) == header["inputs"][0]["parameters"]["binary_data_size"]
                fake.pictures.append(tensor[4:])
                if fake.status is None:
                    fake.end.wait(5)
                else:
                    fake.own += fake.status == 200
                    content = {"outputs": [{"data": [fake.text]}]} if fake.status == 200 else {"error": fake.text}
                    self.reply(fake.status, json.dumps(content).encode())

        self.handler = Handler
        self.url = ""
        self._began_s = time.monotonic()
        self.end = threading.Event()

    def ask(self, pulses: Path | None = None) -> Health:
        return HealthProbe(self.url, f"http://{self.url}/metrics", TIMEOUT_S, pulses).ask("cat")


@pytest.fixture
def triton() -> Iterator[FakeTriton]:
    fake = FakeTriton()
    with serve_http(fake.handler) as port:
        fake.url = f"127.0.0.1:{port}"
        yield fake
        fake.end.set()


def test_a_model_that_answers(triton: FakeTriton) -> None:
    assert triton.ask() == Health("cat", "answers")
    triton.ask()
    first, second = triton.pictures
    assert first != second, "no cache may answer"
    transform = ImageTransform(
        height=16, width=16, resize_backend="cv2", interpolation="LINEAR", scale=1.0, mean=(0,) * 3, std=(1,) * 3
    )
    assert preprocess(first, transform).shape == (16, 16, 3)
    assert (preprocess(make_picture(1), transform) != preprocess(make_picture(2), transform)).any()


@pytest.mark.parametrize("others_per_s", [0.0, 50.0])
@pytest.mark.parametrize(
    ("status", "text", "reason"),
    [
        (503, "Exceeds maximum queue size", "HTTP status 503, Exceeds maximum queue size"),
        (None, "", "timed out after 0.5 s"),
        (500, "Stub process is not healthy", "HTTP status 500, Stub process is not healthy"),
        (
            200,
            "the engine gave scores that are not numbers",
            "the status 'the engine gave scores that are not numbers'",
        ),
    ],
)
def test_a_model_that_does_not_answer_is_busy_if_it_answers_others(
    triton: FakeTriton, status: int | None, text: str, reason: str, others_per_s: float
) -> None:
    triton.status, triton.text, triton.others_per_s = status, text, others_per_s
    began_s = time.monotonic()
    assert triton.ask() == Health("cat", "busy" if others_per_s else "fails", reason)
    assert time.monotonic() - began_s < 5 * TIMEOUT_S


@pytest.mark.parametrize(
    ("step", "waiting", "verdict"),
    [
        ("cat_preprocess_0_1", 0, "busy"),
        ("cat_engine_0_0", 0, "busy"),
        ("cat_engine_2_0_0", 3, "busy"),
        ("cat_preprocess_0_1", 3, "fails"),  # what is stuck is the engine, which has no pulse
        ("cat_too_engine_0_0", 0, "fails"),
        (None, 0, "fails"),
    ],
)
def test_a_model_is_busy_while_a_python_step_that_may_hold_the_probe_is_at_work(
    triton: FakeTriton, tmp_path: Path, step: str | None, waiting: int, verdict: str
) -> None:
    triton.status = None
    triton.engine_metrics = f'nv_inference_pending_request_count{{model="cat_engine",version="1"}} {waiting}\n'
    pulse = Pulse(tmp_path, step or "cat_preprocess_0_0")
    pulse.begin()
    if step is not None:
        pulse.beat()
    assert triton.ask(tmp_path).verdict == verdict


def test_the_time_of_a_full_batch_is_known_from_the_metrics(triton: FakeTriton) -> None:
    triton.status = None
    triton.engine_metrics = "".join(
        f'nv_inference_{metric}{{model="{name}",version="1"}} {value}\n'
        for name, count, duration_us in (("cat_engine", 3, 2_000_000), ("cat_engine_2", 1, 2e6), ("cat_too", 1, 1))
        for metric, value in (("count", count), ("compute_infer_duration_us", duration_us))
    )
    assert triton.ask().full_batch_s == 32.0


def test_the_command_says_when_its_timeout_is_too_short_to_tell(
    triton: FakeTriton, capsys: pytest.CaptureFixture[str]
) -> None:
    triton.status = None
    options = ["health", "cat", "--url", triton.url, "--metrics-url", f"http://{triton.url}/metrics", "--timeout=0.2"]
    assert main(options) == 1
    assert capsys.readouterr().err == "cat does not answer: timed out after 0.2 s\n"
    triton.engine_metrics = (
        'nv_inference_count{model="cat_engine",version="1"} 3\n'
        'nv_inference_compute_infer_duration_us{model="cat_engine",version="1"} 2.1e+06\n'
    )
    assert main(options) == 1
    assert "\nA full batch takes cat 22 s: " in capsys.readouterr().err


def test_a_wrong_answer_is_a_fault_however_busy_the_steps_are(triton: FakeTriton, tmp_path: Path) -> None:
    Pulse(tmp_path, "cat_preprocess_0_0").beat()
    probe = HealthProbe(triton.url, f"http://{triton.url}/metrics", TIMEOUT_S, tmp_path)
    for triton.status, triton.text in ((500, "CUDA error"), (200, "scores that are not numbers")) * 2:
        assert probe.ask("cat").verdict == "fails"


def test_an_answer_between_two_probes_counts(triton: FakeTriton) -> None:
    triton.status = None
    probe = HealthProbe(triton.url, f"http://{triton.url}/metrics", TIMEOUT_S)
    assert probe.ask("cat").verdict == "fails"
    triton.engine_metrics = 'nv_inference_request_success{model="cat_engine",version="1"} 1\n'
    assert probe.ask("cat").verdict == "busy"
    assert probe.ask("cat").verdict == "fails"


def test_no_server() -> None:
    (port,) = free_ports(1)
    probe = HealthProbe(f"127.0.0.1:{port}", f"http://127.0.0.1:{port}/metrics", TIMEOUT_S)
    health = probe.ask("cat")
    assert health.verdict == "fails"
    assert "refused" in health.reason
    assert str(health).startswith("cat does not answer: ")
