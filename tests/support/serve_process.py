"""`mlcls serve` in its own process, for tests that disturb it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from mlcls.base.processes import free_ports
from mlcls.errors import ServerError
from mlcls.server.http_api import HttpApi
from support.processes import ROOT, is_running, mlcls_command
from support.settling import wait_for

MODEL = "small_with_sigmoid"
RECOVERY_TIMEOUT_S = 60.0


@dataclasses.dataclass
class Served:
    """`mlcls serve` in its own process."""

    process: subprocess.Popen[str]
    http_url: str
    grpc_url: str
    metrics_url: str
    errors: Path

    def label(self, image: bytes, timeout_s: float = 5.0) -> dict[str, Any]:
        """Return the answer to one image; a ServerError if there is none."""
        headers = {"Inference-Header-Content-Length": "0", "Content-Type": "application/octet-stream"}
        content = HttpApi(self.http_url).request(f"/v2/models/{MODEL}/infer", timeout_s, image, headers)
        begin = content.index(b'{"class_ids"')
        result: dict[str, Any] = json.loads(content[begin : content.index(b"}", begin) + 1])
        return result

    def tritonserver(self) -> psutil.Process:
        return next(each for each in self.descendants() if each.name() == "tritonserver")

    def step(self, suffix: str) -> psutil.Process:
        """Return the stub process of a step."""
        begin = f"{MODEL}_{suffix}_0_0"
        return next(each for each in self.descendants() if begin in each.cmdline())

    def descendants(self) -> Sequence[psutil.Process]:
        found: list[psutil.Process] = psutil.Process(self.process.pid).children(recursive=True)
        return [each for each in found if is_running(each)]

    def stop(self, signum: signal.Signals = signal.SIGTERM) -> tuple[int, str, list[str]]:
        """Send a signal and wait; return the exit status, what was printed since the ready line, and the errors."""
        self.process.send_signal(signum)
        output, _ = self.process.communicate(timeout=RECOVERY_TIMEOUT_S)
        return self.process.returncode, output, self.lines()

    def lines(self) -> list[str]:
        return self.errors.read_text().splitlines()

    def wait_for_answer(self, image: bytes) -> dict[str, Any]:
        def ask() -> dict[str, Any]:
            assert self.process.poll() is None, self.lines()
            with contextlib.suppress(ServerError, ValueError):
                return self.label(image)
            return {}

        return wait_for(ask, RECOVERY_TIMEOUT_S, self.lines)

    def wait_for_line(self, words: str, count: int = 1) -> str:
        def find() -> list[str]:
            return [line for line in self.lines() if words in line][count - 1 :]

        return wait_for(find, RECOVERY_TIMEOUT_S, lambda: (words, self.lines()))[0]


@contextlib.contextmanager
def serving(repository: Path, folder: Path, *options: str, model: str = MODEL, **environment: str) -> Iterator[Served]:
    """Yield a ready `mlcls serve` on free ports, with its errors in a file of the folder."""
    urls = [f"127.0.0.1:{port}" for port in free_ports(3)]
    errors = folder / "errors"
    with errors.open("w") as error_file:
        process = subprocess.Popen(
            mlcls_command("serve", model, "--repository", repository, *port_options(*urls), *options),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=error_file,
            text=True,
            env={**os.environ, **environment},
        )
    assert process.stdout is not None
    try:
        assert process.stdout.readline().startswith("Loading")
        assert process.stdout.readline().startswith("Ready: "), errors.read_text()
        http_url, grpc_url, metrics_address = urls
        yield Served(process, http_url, grpc_url, f"http://{metrics_address}/metrics", errors)
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def port_options(*urls: str) -> list[str]:
    """Return the options for HTTP, gRPC and metrics on the ports of these addresses, or on free ones."""
    ports = [url.rpartition(":")[2] for url in urls] or free_ports(3)
    return [f"--{api}-port={port}" for api, port in zip(("http", "grpc", "metrics"), ports, strict=True)]


def own_segments(process: subprocess.Popen[str]) -> list[str]:
    return [path.name for path in Path("/dev/shm").glob(f"mlcls_{process.pid}_*")]


def copy_backends(folder: Path, engine_prelude: str) -> Path:
    """Copy the project's backends, with lines of Python that the engine runs before it computes an image."""
    shutil.copytree(ROOT / "python_backends", folder, dirs_exist_ok=True)
    model = folder / "mlcls_engine" / "model.py"
    indented = "".join(f"    {line}\n" for line in engine_prelude.strip().splitlines())
    model.write_text(
        f"{model.read_text()}\n\n_compute = OpenVinoEngine._compute\n\n\ndef _held(*arguments):\n{indented}"
        f"    return _compute(*arguments)\n\n\nOpenVinoEngine._compute = _held\n"
    )
    return folder
