"""Faults done to a server for real: what the operator sees, and that good answers come again by themselves."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from mlcls.ports import free_ports
from processes import ROOT, mlcls_command, run_mlcls
from served_models import SmallModels

MODEL = "small_with_sigmoid"
RECOVERY_TIMEOUT_S = 60.0


@dataclasses.dataclass
class Served:
    """`mlcls serve`, as a process of its own."""

    process: subprocess.Popen[str]
    http_url: str
    metrics_url: str
    errors: Path

    def label(self, image: bytes, timeout_s: float = 5.0) -> dict[str, Any]:
        """The answer to one image; an OSError where there is none."""
        request = urllib.request.Request(
            f"http://{self.http_url}/v2/models/{MODEL}/infer",
            data=image,
            headers={"Inference-Header-Content-Length": "0", "Content-Type": "application/octet-stream"},
        )
        with urllib.request.urlopen(request, timeout=timeout_s) as response:
            content = response.read()
        begin = content.index(b'{"class_ids"')
        result: dict[str, Any] = json.loads(content[begin : content.index(b"}", begin) + 1])
        return result

    def tritonserver(self) -> psutil.Process:
        return next(each for each in self.descendants() if each.name() == "tritonserver")

    def step(self, suffix: str) -> psutil.Process:
        """A stub process of a step."""
        begin = f"{MODEL}_{suffix}_0_0"
        return next(each for each in self.descendants() if begin in each.cmdline())

    def descendants(self) -> Sequence[psutil.Process]:
        found: list[psutil.Process] = psutil.Process(self.process.pid).children(recursive=True)
        return [each for each in found if each.status() != psutil.STATUS_ZOMBIE]

    def lines(self) -> list[str]:
        return self.errors.read_text().splitlines()

    def wait_for_answer(self, image: bytes) -> dict[str, Any]:
        deadline = time.monotonic() + RECOVERY_TIMEOUT_S
        while True:
            try:
                return self.label(image)
            except (OSError, ValueError):
                assert time.monotonic() < deadline, self.lines()
                assert self.process.poll() is None, self.lines()
                time.sleep(0.05)

    def wait_for_line(self, words: str, count: int = 1) -> str:
        deadline = time.monotonic() + RECOVERY_TIMEOUT_S
        while len(found := [line for line in self.lines() if words in line]) < count:
            assert time.monotonic() < deadline, (words, self.lines())
            time.sleep(0.02)
        return found[count - 1]


@contextlib.contextmanager
def serving(repository: Path, folder: Path, *options: str, **environment: str) -> Iterator[Served]:
    http_port, grpc_port, metrics_port = free_ports(3)
    ports = [f"--http-port={http_port}", f"--grpc-port={grpc_port}", f"--metrics-port={metrics_port}"]
    errors = folder / "errors"
    with errors.open("w") as error_file:
        process = subprocess.Popen(
            mlcls_command("serve", MODEL, "--repository", repository, *ports, *options),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=error_file,
            text=True,
            env={**os.environ, **environment},
        )
    assert process.stdout is not None
    try:
        assert process.stdout.readline().startswith("Loading")
        assert process.stdout.readline().startswith("Ready"), errors.read_text()
        yield Served(process, f"127.0.0.1:{http_port}", f"http://127.0.0.1:{metrics_port}/metrics", errors)
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def own_segments(process: subprocess.Popen[str]) -> list[str]:
    return [path.name for path in Path("/dev/shm").glob(f"mlcls_{process.pid}_*")]


@pytest.fixture(scope="module")
def image() -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(7).integers(0, 256, (90, 120, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


FAULTS: dict[str, tuple[Callable[[Served], psutil.Process], signal.Signals, str]] = {
    "killed preprocess": (lambda served: served.step("preprocess"), signal.SIGKILL, "was killed or ended by itself"),
    "killed engine": (lambda served: served.step("engine"), signal.SIGKILL, "was killed or ended by itself"),
    "killed postprocess": (lambda served: served.step("postprocess"), signal.SIGKILL, "was killed or ended by itself"),
    "stopped engine": (lambda served: served.step("engine"), signal.SIGSTOP, "is stopped"),
    "killed server": (Served.tritonserver, signal.SIGKILL, "tritonserver ended with signal 9"),
    "stopped server": (Served.tritonserver, signal.SIGSTOP, "is stopped"),
}


def test_a_supervised_server_comes_back_after_each_fault_until_there_are_too_many(
    small_models: SmallModels, tmp_path: Path, image: bytes
) -> None:
    options = ("--supervise", f"--max-restarts={len(FAULTS)}", "--hang-timeout=1", "--restart-pause=0")
    with serving(small_models.repository, tmp_path, *options) as served:
        expected = served.label(image)
        for number, (name, (choose, signum, words)) in enumerate(FAULTS.items(), 1):
            victim = choose(served)
            old = served.descendants()
            victim.send_signal(signum)
            line = served.wait_for_line(f" Restart {number} in ")
            assert words in line, name
            assert str(victim.pid) in line or "tritonserver" in line
            served.wait_for_line("Ready again", number)
            assert served.label(image) == expected, name
            _, alive = psutil.wait_procs(old, timeout=5)
            assert not alive, "nothing of the old server is left"
        served.tritonserver().kill()
        assert served.process.wait(RECOVERY_TIMEOUT_S) == 3
        last = served.lines()[-1]
        assert last.startswith(f"mlcls serve: Gave up: the server was restarted {len(FAULTS)} times within 600 s")
        assert own_segments(served.process) == []


def test_without_supervision_a_killed_step_ends_the_command(
    small_models: SmallModels, tmp_path: Path, image: bytes
) -> None:
    with serving(small_models.repository, tmp_path) as served:
        served.label(image)
        step = served.step("engine")
        step.kill()
        assert served.process.wait(RECOVERY_TIMEOUT_S) == 1
        (line,) = served.lines()
        assert line.startswith("mlcls serve: The server is not well: ")
        assert f"(process {step.pid}) was killed or ended by itself" in line
        assert own_segments(served.process) == []


@pytest.fixture(scope="module")
def hanging_backends(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's backends, with an engine that hangs while a file lies beside it."""
    folder = tmp_path_factory.mktemp("backends")
    shutil.copytree(ROOT / "python_backends", folder, dirs_exist_ok=True)
    model = folder / "mlcls_engine" / "model.py"
    indented = """\
            import time
            from pathlib import Path
            while Path(__file__).with_name('hang').exists():
                time.sleep(0.01)
"""
    before = "        with self._pulse.working():\n"
    text = model.read_text()
    assert before in text
    model.write_text(text.replace(before, before + indented))
    return folder


def test_a_step_that_hangs_and_a_slow_one_that_does_not(
    small_models: SmallModels, tmp_path: Path, image: bytes, hanging_backends: Path
) -> None:
    hang = hanging_backends / "mlcls_engine" / "hang"
    options = ("--supervise", "--hang-timeout=2.5", "--probe-interval=0.5", "--probe-timeout=10")
    with serving(small_models.repository, tmp_path, *options, MLCLS_PYTHON_BACKENDS=str(hanging_backends)) as served:
        expected = served.label(image)
        hang.touch()
        with pytest.raises(OSError, match="timed out"):
            served.label(image, timeout_s=1.0)
        assert served.lines() == [], "slow is not hanging"
        hang.unlink()
        assert served.label(image) == expected
        hang.touch()
        with pytest.raises(OSError):
            served.label(image, timeout_s=20.0)
        line = served.wait_for_line("Restart 1 in ")
        assert f"the step {MODEL}_engine_0_0" in line
        assert "hangs: it has worked on one request for" in line
        hang.unlink()
        assert served.wait_for_answer(image) == expected


def test_a_server_whose_steps_look_well_but_that_does_not_answer(
    small_models: SmallModels, tmp_path: Path, image: bytes, hanging_backends: Path
) -> None:
    """As a native engine that hangs, or Triton itself: no pulse tells, the probe does."""
    hang = hanging_backends / "mlcls_engine" / "hang"
    options = ("--hang-timeout=60", "--probe-interval=0.2", "--probe-timeout=0.5")
    with serving(small_models.repository, tmp_path, *options, MLCLS_PYTHON_BACKENDS=str(hanging_backends)) as served:
        health: list[str | Path] = ["health", MODEL, "--url", served.http_url, "--metrics-url", served.metrics_url]
        process = run_mlcls(*health)
        assert (process.returncode, process.stdout, process.stderr) == (0, f"{MODEL} answers\n", "")
        hang.touch()
        assert served.process.wait(RECOVERY_TIMEOUT_S) == 1
        hang.unlink()
        (line,) = served.lines()
        assert f"{MODEL} does not answer: no answer within 0.5 s, 2 probes in a row" in line
    process = run_mlcls(*health)
    assert (process.returncode, process.stdout) == (1, "")
    assert process.stderr == f"{MODEL} does not answer: Connection refused\n" or "refused" in process.stderr
