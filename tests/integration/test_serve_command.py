"""`mlcls serve` as an operator meets it: ready line, clean stop, one clear message for each thing that goes wrong."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from mlcls.base.processes import read_process
from mlcls.errors import ServerError
from mlcls.server.installation import embedded_installation
from mlcls.server.options import ServerOptions
from mlcls.server.process import TritonServer
from support.processes import ROOT, assert_ended, is_running, mlcls_command, run_mlcls
from support.serve_process import MODEL, RECOVERY_TIMEOUT_S, own_segments, port_options, serving
from support.served_models import SmallModels
from support.settling import wait_for

_STOPPED_AT_READY = """
import signal, sys
import psutil
from mlcls.server.logs import Announcements
from mlcls.cli import main

say = Announcements.say

def say_and_stop(self, text, *level):
    say(self, text, *level)
    if text.startswith("Ready"):
        print(*(child.pid for child in psutil.Process().children(recursive=True)), flush=True)
        signal.raise_signal(signal.SIGTERM)

Announcements.say = say_and_stop
sys.exit(main())
"""

_STOPPED_IN_FORK = """
import os, signal, sys
from mlcls.cli import main

os.register_at_fork(after_in_parent=lambda: signal.raise_signal(signal.SIGTERM))
sys.exit(main())
"""


def start(small_models: SmallModels, *program: str, **environment: str) -> subprocess.Popen[str]:
    """Starts the command, or a program that calls it."""
    command = [*program, "serve", MODEL] if program else mlcls_command("serve", MODEL)
    return subprocess.Popen(
        [*command, "--repository", str(small_models.repository), *port_options()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def children_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    found: list[psutil.Process] = psutil.Process(process.pid).children(recursive=True)
    return [each for each in found if is_running(each)]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_it_without_leftovers(small_models: SmallModels, tmp_path: Path, signum: signal.Signals) -> None:
    log = tmp_path / "triton.log"
    with serving(small_models.repository, tmp_path, f"--log-file={log}") as served:
        children = served.descendants()
        assert len(children) >= 5, "tritonserver and its stub processes"
        assert len(own_segments(served.process)) >= 4
        assert served.stop(signum) == (0, "Stopped.\n", [])
    assert_ended(children, 5)
    assert not own_segments(served.process)
    assert f"successfully loaded '{MODEL}'" in log.read_text(errors="replace")


def test_a_signal_in_the_moment_of_the_ready_line(small_models: SmallModels) -> None:
    """The command says that it has stopped once its server has."""
    process = start(small_models, sys.executable, "-c", _STOPPED_AT_READY)
    output, errors = process.communicate(timeout=300)
    *_, ready, children, stopped = output.splitlines()
    assert ready.startswith(f"Ready: {MODEL} at ")
    assert (process.returncode, stopped, errors) == (0, "Stopped.", "")
    assert len(children.split()) >= 5, "tritonserver and its stub processes"
    assert [pid for pid in children.split() if read_process(int(pid)) is not None] == []
    assert not own_segments(process)


def test_a_signal_in_the_moment_of_the_fork(small_models: SmallModels) -> None:
    """Python then drops the exception that the handler raises."""
    process = start(small_models, sys.executable, "-c", _STOPPED_IN_FORK)
    output, errors = process.communicate(timeout=300)
    assert "Exception ignored in" in errors
    assert (process.returncode, output) == (0, f"Loading {MODEL} ...\nStopped.\n")


def test_stopping_while_it_loads(small_models: SmallModels) -> None:
    process = start(small_models)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("Loading")
    deadline = time.monotonic() + 20
    while not (children := psutil.Process(process.pid).children(recursive=True)) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=RECOVERY_TIMEOUT_S)
    assert (process.returncode, output) == (0, "Stopped.\n")
    assert errors == "" or errors.startswith("Exception ignored in"), "in the moment of the fork, see above"
    assert_ended(children, 5)
    assert not own_segments(process)


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGQUIT])
def test_a_killed_command_takes_its_server_along(
    small_models: SmallModels, tmp_path: Path, signum: signal.Signals
) -> None:
    with serving(small_models.repository, tmp_path, TMPDIR=str(tmp_path)) as served:
        children = served.descendants()
        assert served.stop(signum)[0] == -signum
        assert_ended(children, RECOVERY_TIMEOUT_S)
        assert not own_segments(served.process)
        assert not list(tmp_path.glob("mlcls-serve-*"))


@pytest.mark.parametrize("delay_s", [0.0, 0.5, 1.0])
def test_a_command_that_is_killed_while_it_loads(small_models: SmallModels, tmp_path: Path, delay_s: float) -> None:
    """Triton then leaves steps that would wait for ever."""
    process = start(small_models, TMPDIR=str(tmp_path))
    with process:
        steps = wait_for(lambda: [each for each in children_of(process) if "stub" in each.name()], RECOVERY_TIMEOUT_S)
        time.sleep(delay_s)
        children = [*steps, *children_of(process)]
        process.kill()
    assert_ended(children, RECOVERY_TIMEOUT_S)
    assert not own_segments(process)
    assert not list(tmp_path.glob("mlcls-serve-*"))


def test_a_server_that_dies_ends_the_command(small_models: SmallModels, tmp_path: Path) -> None:
    with serving(small_models.repository, tmp_path) as served:
        children = served.descendants()
        served.tritonserver().kill()
        assert served.process.wait(RECOVERY_TIMEOUT_S) == 1
        assert served.lines() == ["mlcls serve: tritonserver ended with signal 9: its log gives no reason"]
    assert_ended(children, RECOVERY_TIMEOUT_S)
    assert not own_segments(served.process)


def test_a_taken_port(small_models: SmallModels) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        options = ["--repository", str(small_models.repository), *port_options(), f"--grpc-port={port}"]
        process = run_mlcls("serve", MODEL, *options)
    assert_one_line(process, f"Port {port} on 127.0.0.1 cannot be used (Address already in use); choose another with")


def test_a_damaged_and_a_missing_weight(small_models: SmallModels, tmp_path: Path) -> None:
    repository = shutil.copytree(small_models.repository, tmp_path / "model_repository")
    weights = repository / f"{MODEL}_engine" / "1" / "model.onnx"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    command = ["serve", MODEL, "--repository", str(repository), *port_options()]
    assert_one_line(run_mlcls(*command), f"{weights} is not the file that its manifest was written for")
    weights.unlink()
    assert_one_line(run_mlcls(*command), f"{weights} does not exist, but its manifest has it; import the model again")


def test_a_crash_at_load(small_models: SmallModels, tmp_path: Path) -> None:
    backends = shutil.copytree(ROOT / "python_backends", tmp_path / "python_backends")
    model = backends / "mlcls_engine" / "model.py"
    model.write_text(f"{model.read_text()}\nimport os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    process = start(small_models, MLCLS_PYTHON_BACKENDS=str(backends))
    output, errors = process.communicate(timeout=300)
    completed = subprocess.CompletedProcess(process.args, process.returncode, output, errors)
    assert_one_line(completed, f"failed to load '{MODEL}_engine' version 1: Internal: Stub process")
    assert not own_segments(process)


def assert_one_line(process: subprocess.CompletedProcess[str], words: str) -> None:
    """The command failed with one line on standard error that says what is wrong."""
    assert process.returncode == 1, process
    (line,) = process.stderr.splitlines()
    assert line.startswith("mlcls serve: ")
    assert words in line


def test_a_repository_may_have_any_path(small_models: SmallModels, sample_images: list[Path], tmp_path: Path) -> None:
    repository = tmp_path / "my $HOME 'models' \"é" / ("long" * 30)
    shutil.copytree(small_models.repository, repository)
    with serving(repository, tmp_path) as served:
        assert "scores" in served.label(sample_images[0].read_bytes())


def test_a_folder_for_temporary_files_that_a_shell_misreads_is_an_error(
    small_models: SmallModels, tmp_path: Path
) -> None:
    folder = tmp_path / "a b"
    folder.mkdir()
    process = run_mlcls("serve", MODEL, "--repository", small_models.repository, *port_options(), TMPDIR=str(folder))
    assert process.returncode == 1
    assert process.stderr.endswith("set TMPDIR to a plain path: TMPDIR=/tmp.\n")


def test_a_step_that_cannot_be_started_is_told_at_once(small_models: SmallModels, tmp_path: Path) -> None:
    stub = tmp_path / "triton_python_backend_stub"
    stub.write_text("#!/bin/sh\necho 'stub: cannot open a library' >&2\nexit 127\n")
    options = ServerOptions.on_free_ports(small_models.repository, MODEL)
    server = TritonServer(options, dataclasses.replace(embedded_installation(), stub=stub))
    begin = time.monotonic()
    with pytest.raises(ServerError, match="A Python step ended while it was started: stub: cannot open a library"):
        server.start()
    assert time.monotonic() - begin < options.ready_timeout_s / 2
