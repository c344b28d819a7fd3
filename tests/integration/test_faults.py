"""Faults done to a server for real: what the operator sees, and that good answers come again by themselves."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from mlcls.errors import ServerError
from mlcls.repository.models import Repository
from mlcls.repository.names import ONNX_FILE
from mlcls.server.http_api import HttpStatusError, NoAnswerError
from support.processes import assert_ended, run_mlcls
from support.serve_process import MODEL, RECOVERY_TIMEOUT_S, Served, copy_backends, own_segments, serving
from support.served_models import SmallModels
from support.settling import wait_for
from support.triton_request import ask_outputs

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def image() -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(7).integers(0, 256, (90, 120, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def check_same(result: dict[str, Any], expected: dict[str, Any]) -> None:
    """Scores may differ by the engine's last bits, where another image, of a probe, is under way."""
    assert result["label_names"] == expected["label_names"]
    assert result["scores"] == pytest.approx(expected["scores"], abs=2e-5)


FAULTS: dict[str, tuple[Callable[[Served], psutil.Process], signal.Signals, str]] = {
    "killed preprocess": (lambda served: served.step("preprocess"), signal.SIGKILL, "was killed or exited"),
    "killed engine": (lambda served: served.step("engine"), signal.SIGKILL, "was killed or exited"),
    "killed postprocess": (lambda served: served.step("postprocess"), signal.SIGKILL, "was killed or exited"),
    "stopped engine": (lambda served: served.step("engine"), signal.SIGSTOP, "is stopped"),
    "killed server": (Served.tritonserver, signal.SIGKILL, "tritonserver ended with signal 9"),
    "stopped server": (Served.tritonserver, signal.SIGSTOP, "is stopped"),
}


def test_a_supervised_server_comes_back_after_each_fault_until_there_are_too_many(
    small_models: SmallModels, tmp_path: Path, image: bytes
) -> None:
    repository = tmp_path / "repository"
    shutil.copytree(small_models.repository, repository)
    most = len(FAULTS) + 2
    options = ("--supervise", f"--max-restarts={most}", "--hang-timeout=1", "--restart-pause=0")
    with serving(repository, tmp_path, *options) as served:
        expected = served.label(image)
        for number, (name, (choose, signum, words)) in enumerate(FAULTS.items(), 1):
            victim = choose(served)
            old = served.descendants()
            victim.send_signal(signum)
            line = served.wait_for_line(f" Restart {number} in ")
            assert words in line, name
            assert str(victim.pid) in line or "tritonserver" in line
            served.wait_for_line("Ready again", number)
            check_same(served.label(image), expected)
            assert_ended(old, timeout_s=5)
        turn_a_bit(Repository(repository).active(MODEL).engine_folder / ONNX_FILE)
        check_same(served.label(image), expected)  # what is loaded is loaded
        served.tritonserver().kill()
        assert served.process.wait(RECOVERY_TIMEOUT_S) == 3
        last = served.lines()[-1]
        assert last.startswith(f"mlcls serve: Gave up: the server was restarted {most} times within 600 s")
        assert "model.onnx is not the file that its manifest was written for" in last
        assert own_segments(served.process) == []


def turn_a_bit(path: Path) -> None:
    """Damages a file in its place, as a disk may."""
    middle = path.stat().st_size // 2
    with path.open("r+b") as file:
        file.seek(middle)
        (byte,) = file.read(1)
        file.seek(middle)
        file.write(bytes([byte ^ 1]))


def test_without_supervision_a_killed_step_ends_the_command(
    small_models: SmallModels, tmp_path: Path, image: bytes
) -> None:
    with serving(small_models.repository, tmp_path) as served:
        served.label(image)
        step = served.step("engine")
        step.kill()
        assert served.process.wait(RECOVERY_TIMEOUT_S) == 1
        (line,) = served.lines()
        assert line.startswith("mlcls serve: The server is unhealthy: ")
        assert f"(process {step.pid}) was killed or exited" in line
        assert own_segments(served.process) == []


def test_a_fault_of_a_request_is_not_the_reason_of_an_end(
    small_models: SmallModels, tmp_path: Path, image: bytes
) -> None:
    backends = copy_backends(tmp_path / "backends", "pass")
    with (backends / "mlcls_preprocess" / "model.py").open("a") as file:
        file.write("\n\ndef _fail(*_):\n    raise KeyError('of a request')\n\n\nTritonPythonModel._open = _fail\n")
    log = tmp_path / "log"
    options = (f"--log-file={log}", "--probe-interval=0")
    with serving(small_models.repository, tmp_path, *options, MLCLS_PYTHON_BACKENDS=str(backends)) as served:
        with pytest.raises(HttpStatusError, match="KeyError: 'of a request'"):
            served.label(image)
        wait_for(lambda: "Traceback" in log.read_text())
        served.tritonserver().send_signal(signal.SIGFPE)
        assert served.process.wait(RECOVERY_TIMEOUT_S) == 1
        assert served.lines() == ["mlcls serve: tritonserver ended with signal 8: its log gives no reason"]


@pytest.fixture(scope="module")
def hanging_backends(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's backends, with an engine that hangs while a file lies beside it."""
    hang = (
        "import time\nfrom pathlib import Path\nwhile Path(__file__).with_name('hang').exists():\n    time.sleep(0.01)"
    )
    return copy_backends(tmp_path_factory.mktemp("backends"), hang)


def test_a_step_that_hangs_and_a_slow_one_that_does_not(
    small_models: SmallModels, tmp_path: Path, image: bytes, hanging_backends: Path
) -> None:
    hang = hanging_backends / "mlcls_engine" / "hang"
    options = ("--supervise", "--hang-timeout=2.5", "--probe-interval=0.5", "--probe-timeout=10")
    with serving(small_models.repository, tmp_path, *options, MLCLS_PYTHON_BACKENDS=str(hanging_backends)) as served:
        expected = served.label(image)
        hang.touch()
        with pytest.raises(NoAnswerError, match="timed out"):
            served.label(image, timeout_s=1.0)
        assert served.lines() == [], "slow is not hanging"
        hang.unlink()
        check_same(served.label(image), expected)
        hang.touch()
        with pytest.raises(ServerError):
            served.label(image, timeout_s=20.0)
        line = served.wait_for_line("Restart 1 in ")
        assert f"step {MODEL}_engine_0_0" in line
        assert "hangs: it has been working on one request for" in line
        hang.unlink()
        check_same(served.wait_for_answer(image), expected)


# As one of Triton's own backends: no pulse tells whether it is at work, and a batch is answered as a whole.
NATIVE_ENGINE = """
import time
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        while Path(__file__).with_name("hang").exists():
            time.sleep(0.01)
        counts = [len(pb_utils.get_input_tensor_by_name(request, "pixels").as_numpy()) for request in requests]
        time.sleep(0.1 * sum(counts))
        logits = [pb_utils.Tensor("logits", np.zeros((count, 5), np.float32)) for count in counts]
        return [pb_utils.InferenceResponse([tensor]) for tensor in logits]
"""
SLOW_PREPROCESS = """

_open = TritonPythonModel._open


def _slow(*arguments):
    import time

    time.sleep(0.2)
    return _open(*arguments)


TritonPythonModel._open = _slow
"""


@pytest.fixture(scope="module")
def native_backends(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Backends whose engine takes 3 s for a batch and hangs while a file lies beside it."""
    folder = copy_backends(tmp_path_factory.mktemp("native"), "pass")
    (folder / "mlcls_engine" / "model.py").write_text(NATIVE_ENGINE)
    with (folder / "mlcls_preprocess" / "model.py").open("a") as file:
        file.write(SLOW_PREPROCESS)
    return folder


# Two failed probes take 1.2 s, a full batch more than 3 s.
IMPATIENT = ("--probe-interval=0.2", "--probe-timeout=0.5")


@pytest.mark.parametrize("kind", ["with a pulse", "native"])
def test_a_batch_that_takes_longer_than_many_probes(
    small_models: SmallModels, tmp_path: Path, image: bytes, native_backends: Path, kind: str
) -> None:
    backends = native_backends
    if kind == "with a pulse":  # it computes one image on each core and one more at once
        backends = copy_backends(tmp_path / "backends", f"import time\ntime.sleep({0.1 * (os.cpu_count() or 1) + 0.1})")
    with (
        serving(small_models.repository, tmp_path, *IMPATIENT, MLCLS_PYTHON_BACKENDS=str(backends)) as served,
        ThreadPoolExecutor() as pool,
    ):
        answers = [pool.submit(ask_outputs, served, MODEL, [image] * 32, ["status"]) for _ in range(2)]
        for answer in answers:
            assert answer.result()["status"].ravel().tolist() == [b"OK"] * 32
        assert served.process.poll() is None
        assert served.stop() == (0, "Stopped.\n", [])


def test_a_native_engine_that_hangs_while_images_are_decoded(
    small_models: SmallModels, tmp_path: Path, image: bytes, native_backends: Path
) -> None:
    """No pulse tells, the probe does; that preprocess is at work all the time says nothing of the engine."""
    hang = native_backends / "mlcls_engine" / "hang"
    ended = threading.Event()
    with (
        serving(small_models.repository, tmp_path, *IMPATIENT, MLCLS_PYTHON_BACKENDS=str(native_backends)) as served,
        ThreadPoolExecutor() as pool,
    ):
        health: list[str | Path] = ["health", MODEL, "--url", served.http_url, "--metrics-url", served.metrics_url]
        process = run_mlcls(*health)
        assert (process.returncode, process.stdout, process.stderr) == (0, f"{MODEL} answers\n", "")

        def keep_asking() -> None:
            while not ended.is_set():
                with contextlib.suppress(ServerError):
                    served.label(image, timeout_s=0.5)

        hang.touch()
        try:
            for _ in range(2):
                pool.submit(keep_asking)
            assert served.process.wait(RECOVERY_TIMEOUT_S) == 1
        finally:
            ended.set()
            hang.unlink()
        (line,) = served.lines()
        assert f"{MODEL} does not answer: " in line
        assert "probes in a row" in line
    process = run_mlcls(*health)
    assert (process.returncode, process.stdout) == (1, "")
    assert process.stderr == f"{MODEL} does not answer: Connection refused\n" or "refused" in process.stderr
