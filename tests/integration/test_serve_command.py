"""`mlcls serve` as an operator meets it: ready line, clean stop, one clear message for each thing that goes wrong."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from mlcls.base.processes import free_ports, read_process
from mlcls.server.options import ADMIN_KEY_HEADER, ADMIN_KEY_VARIABLE
from support import serve_process
from support.processes import assert_ended, mlcls_command, run_mlcls, start_server
from support.served_models import SmallModels

MODEL = "small_with_sigmoid"
STOP_TIMEOUT_S = 60.0

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


def port_options() -> list[str]:
    http_port, grpc_port, metrics_port = free_ports(3)
    return [f"--http-port={http_port}", f"--grpc-port={grpc_port}", f"--metrics-port={metrics_port}"]


@contextlib.contextmanager
def serving(repository: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """A running `mlcls serve` that has said that it is ready."""
    process = subprocess.Popen(
        mlcls_command("serve", MODEL, "--repository", repository, *port_options(), *options),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        lines = [process.stdout.readline(), process.stdout.readline()]
        assert lines[1].startswith(f"Ready: {MODEL} at grpc 127.0.0.1:"), (lines, process.communicate()[1])
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def processes_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    children: list[psutil.Process] = psutil.Process(process.pid).children(recursive=True)
    return children


def shared_memory(process: subprocess.Popen[str]) -> set[str]:
    """The regions of this command; other servers of the machine have some too."""
    return {path.name for path in Path("/dev/shm").glob(f"mlcls_{process.pid}_*")}


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_without_leftovers(small_models: SmallModels, signum: signal.Signals) -> None:
    with serving(small_models.repository) as process:
        children = processes_of(process)
        assert len(children) >= 5, "tritonserver and its stub processes"
        assert len(shared_memory(process)) >= 4
        process.send_signal(signum)
        output, errors = process.communicate(timeout=STOP_TIMEOUT_S)
    assert (process.returncode, output, errors) == (0, "Stopped.\n", "")
    assert_ended(children, 5)
    assert not shared_memory(process)


def test_a_signal_in_the_moment_of_the_ready_line(small_models: SmallModels) -> None:
    """The command says that it has stopped once its server has."""
    options = ["--repository", str(small_models.repository), *port_options()]
    process = subprocess.Popen(
        [sys.executable, "-c", _STOPPED_AT_READY, "serve", MODEL, *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    output, errors = process.communicate(timeout=300)
    *_, ready, children, stopped = output.splitlines()
    assert ready.startswith(f"Ready: {MODEL} at ")
    assert (process.returncode, stopped, errors) == (0, "Stopped.", "")
    assert len(children.split()) >= 5, "tritonserver and its stub processes"
    assert [pid for pid in children.split() if read_process(int(pid)) is not None] == []
    assert not shared_memory(process)


def test_a_signal_in_the_moment_of_the_fork(small_models: SmallModels) -> None:
    """Python then drops the exception that the handler raises."""
    options = ["--repository", str(small_models.repository), *port_options()]
    process = subprocess.run(
        [sys.executable, "-c", _STOPPED_IN_FORK, "serve", MODEL, *options],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "Exception ignored in" in process.stderr
    assert (process.returncode, process.stdout) == (0, f"Loading {MODEL} ...\nStopped.\n")


def test_a_killed_command_takes_its_server_along(small_models: SmallModels) -> None:
    with serving(small_models.repository) as process:
        children = processes_of(process)
        process.kill()
        process.wait()
        assert_ended(children, STOP_TIMEOUT_S)


def test_a_server_that_dies_ends_the_command(small_models: SmallModels) -> None:
    with serving(small_models.repository) as process:
        children = processes_of(process)
        next(child for child in children if child.name() == "tritonserver").kill()
        _, errors = process.communicate(timeout=STOP_TIMEOUT_S)
    assert process.returncode == 1
    assert errors.splitlines() == ["mlcls serve: tritonserver ended with signal 9: its log gives no reason"]
    assert_ended(children, STOP_TIMEOUT_S)
    assert not shared_memory(process)


def test_a_taken_port(small_models: SmallModels) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = run_mlcls(
            "serve", MODEL, "--repository", small_models.repository, *port_options(), f"--grpc-port={port}"
        )
    assert_one_line(process, f"Port {port} on 127.0.0.1 cannot be used (Address already in use); choose another with")


def test_a_missing_weight(small_models: SmallModels, tmp_path: Path) -> None:
    repository = copy_repository(small_models, tmp_path)
    weights = repository / f"{MODEL}_engine" / "1" / "model.onnx"
    weights.unlink()
    process = run_mlcls("serve", MODEL, "--repository", repository, *port_options())
    assert_one_line(process, f"{weights} does not exist, but its manifest has it; import the model again")


def test_a_model_that_is_not_imported(small_models: SmallModels, tmp_path: Path) -> None:
    repository = copy_repository(small_models, tmp_path)
    shutil.rmtree(repository / MODEL / "1")
    process = run_mlcls("serve", MODEL, "--repository", repository, *port_options())
    assert_one_line(process, f"The model {MODEL} in {repository} has no weights yet")


def test_an_unknown_model(small_models: SmallModels) -> None:
    process = run_mlcls("serve", "horse", "--repository", small_models.repository, *port_options())
    assert_one_line(process, "has no model 'horse'; expected one of small_with_logits, small_with_sigmoid")


def test_a_damaged_weight(small_models: SmallModels, tmp_path: Path) -> None:
    repository = copy_repository(small_models, tmp_path)
    weights = repository / f"{MODEL}_engine" / "1" / "model.onnx"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    process = run_mlcls("serve", MODEL, "--repository", repository, *port_options())
    assert_one_line(process, f"{weights} is not the file that its manifest was written for")


def test_a_crash_at_load(small_models: SmallModels, tmp_path: Path) -> None:
    backends = tmp_path / "python_backends"
    shutil.copytree(Path(__file__).parents[2] / "python_backends", backends)
    model = backends / "mlcls_engine" / "model.py"
    model.write_text(f"{model.read_text()}\nimport os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    process = subprocess.Popen(
        mlcls_command("serve", MODEL, "--repository", small_models.repository, *port_options()),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "MLCLS_PYTHON_BACKENDS": str(backends)},
    )
    output, errors = process.communicate(timeout=300)
    completed = subprocess.CompletedProcess(process.args, process.returncode, output, errors)
    assert_one_line(completed, f"failed to load '{MODEL}_engine' version 1: Internal: Stub process")
    assert not shared_memory(process)


def test_a_target_without_its_backend(small_models: SmallModels) -> None:
    process = run_mlcls("serve", MODEL, "--repository", small_models.repository, "--target", "cpu", *port_options())
    assert_one_line(process, "The target 'cpu' needs Triton's backend 'onnxruntime'")


def test_stopping_while_it_loads(small_models: SmallModels) -> None:
    process = subprocess.Popen(
        mlcls_command("serve", MODEL, "--repository", small_models.repository, *port_options()),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("Loading")
    deadline = time.monotonic() + 20
    while not (children := processes_of(process)) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=STOP_TIMEOUT_S)
    assert (process.returncode, output, errors) == (0, "Stopped.\n", "")
    assert_ended(children, 5)
    assert not shared_memory(process)


def test_the_closed_apis_open_with_the_key(small_models: SmallModels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ADMIN_KEY_VARIABLE, "open sesame")
    with start_server(small_models.repository, MODEL) as server, InferenceServerClient(server.grpc_url) as client:
        for key in (None, "open barley"):
            with pytest.raises(InferenceServerException, match="restricted"):
                client.unload_model(MODEL, headers={f"triton-grpc-protocol-{ADMIN_KEY_HEADER}": key} if key else None)
        assert client.is_model_ready(MODEL)
        client.unload_model(MODEL, headers={f"triton-grpc-protocol-{ADMIN_KEY_HEADER}": "open sesame"})
        assert not client.is_model_ready(MODEL)
        request = urllib.request.Request(
            f"http://{server.http_url}/v2/repository/models/{MODEL}/load",
            data=b"{}",
            headers={ADMIN_KEY_HEADER: "open sesame"},
            method="POST",
        )
        with urllib.request.urlopen(request) as response:
            assert response.status == 200
        assert client.is_model_ready(MODEL)


def test_the_log_is_kept_where_it_is_wanted(small_models: SmallModels, tmp_path: Path) -> None:
    log = tmp_path / "triton.log"
    with serving(small_models.repository, f"--log-file={log}") as process:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=STOP_TIMEOUT_S)
    assert f"successfully loaded '{MODEL}'" in log.read_text(errors="replace")


def copy_repository(models: SmallModels, folder: Path) -> Path:
    target = folder / "model_repository"
    shutil.copytree(models.repository, target)
    return target


def assert_one_line(process: subprocess.CompletedProcess[str], words: str) -> None:
    """The command failed with one line on standard error that says what is wrong."""
    assert process.returncode == 1, process
    lines = process.stderr.splitlines()
    assert len(lines) == 1, process.stderr
    assert lines[0].startswith("mlcls serve: ")
    assert words in lines[0]
    assert os.linesep not in lines[0]


def test_a_repository_may_have_any_path(small_models: SmallModels, sample_images: list[Path], tmp_path: Path) -> None:
    repository = tmp_path / "my $HOME 'models' \"é" / ("long" * 30)
    shutil.copytree(small_models.repository, repository)
    with serve_process.serving(repository, tmp_path) as served:
        assert "scores" in served.label(sample_images[0].read_bytes())


def test_a_folder_for_temporary_files_that_a_shell_misreads_is_an_error(
    small_models: SmallModels, tmp_path: Path
) -> None:
    folder = tmp_path / "a b"
    folder.mkdir()
    process = run_mlcls("serve", MODEL, "--repository", small_models.repository, *port_options(), TMPDIR=str(folder))
    assert process.returncode == 1
    assert process.stderr.endswith("set TMPDIR to a plain path: TMPDIR=/tmp.\n")
