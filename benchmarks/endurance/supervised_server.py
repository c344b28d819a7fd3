"""`mlcls serve --supervise` as an operator runs it: a separate process that is started again after a kill."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import psutil

from mlcls.base.processes import free_ports
from mlcls.errors import ServerError

_READY_TIMEOUT_S: Final = 300.0
_GONE_TIMEOUT_S: Final = 60.0


class SupervisedServer:
    """The command and all its processes; a context manager that ends them.

    Attributes:
        grpc_url: `host:port` of the gRPC API.
        log: File of the command's output, restarts included.
    """

    def __init__(self, repository: Path, models: Sequence[str], log: Path, options: Sequence[str] = ()) -> None:
        """Choose ports; entering the context starts the command.

        Args:
            repository: The model repository.
            models: Its ensembles.
            log: File for the command's output.
            options: More options of `mlcls serve`.
        """
        http_port, grpc_port, metrics_port = free_ports(3)
        self.grpc_url = f"127.0.0.1:{grpc_port}"
        self.log = log
        self._command = [
            *(sys.executable, "-m", "mlcls.cli", "serve", *models, "--repository", str(repository), "--supervise"),
            *(f"--http-port={http_port}", f"--grpc-port={grpc_port}", f"--metrics-port={metrics_port}"),
            *options,
        ]

    def __enter__(self) -> SupervisedServer:
        self._start()
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while "Ready: " not in self.log.read_text(errors="replace"):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise ServerError(f"Expected mlcls serve to become ready, got: {self.log.read_text()[-500:]}")
            time.sleep(0.1)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self.exit_status: int | None = self._process.wait(120)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self.exit_status = None

    @property
    def is_running(self) -> bool:
        """Whether the command is running."""
        return self._process.poll() is None

    def descendants(self) -> list[psutil.Process]:
        """Return its running descendants."""
        found: list[psutil.Process] = psutil.Process(self._process.pid).children(recursive=True)
        return [each for each in found if _is_alive(each)]

    def memory_bytes(self) -> int:
        """Return the memory of all its processes (PSS: shared memory counts once)."""
        total = 0
        for process in (psutil.Process(self._process.pid), *self.descendants()):
            try:
                total += process.memory_full_info().pss
            except psutil.Error:
                continue
        return total

    def kill_and_start(self) -> None:
        """Kill the command like the OOM killer, wait until its processes have ended, and start it like systemd."""
        left = self.descendants()
        self._process.kill()
        self._process.wait()
        psutil.wait_procs(left, timeout=_GONE_TIMEOUT_S)
        self._start()

    def _start(self) -> None:
        with self.log.open("a") as log:
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
