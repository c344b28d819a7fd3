"""`mlcls serve --supervise` as an operator runs it: a separate process that is started again after a kill."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import psutil

from benchmarks.endurance.asker import Place
from benchmarks.usage import read_usage, total_pss_bytes
from mlcls.base.processes import free_ports
from mlcls.errors import ServerError
from mlcls.server.options import ADMIN_KEY_VARIABLE

_READY_TIMEOUT_S: Final = 300.0
_GONE_TIMEOUT_S: Final = 60.0


class SupervisedServer:
    """The command and all its processes; a context manager that ends them.

    Attributes:
        place: Where it listens.
        log: File of the command's output, restarts included.
        exit_status: Exit status after SIGTERM; None before, and if it did not end.
    """

    def __init__(self, repository: Path, models: Sequence[str], log: Path) -> None:
        """Choose ports; entering the context starts the command.

        Args:
            repository: The model repository.
            models: Its ensembles.
            log: File for the command's output; replaced.
        """
        http_port, grpc_port, metrics_port = free_ports(3)
        self.place = Place(f"127.0.0.1:{grpc_port}", f"127.0.0.1:{http_port}", "endurance")
        self.log = log
        self.exit_status: int | None = None
        self._command = [sys.executable, "-m", "mlcls.cli", "serve", *models, "--repository", str(repository)]
        self._command += ["--supervise", "--max-restarts=1000000", f"--http-port={http_port}"]
        self._command += [f"--grpc-port={grpc_port}", f"--metrics-port={metrics_port}"]

    def __enter__(self) -> SupervisedServer:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.log.unlink(missing_ok=True)
        self._start()
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while "Ready: " not in self.log.read_text(errors="replace"):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._process.kill()
                raise ServerError(f"Expected mlcls serve to become ready, got: {self.log.read_text()[-500:]}")
            time.sleep(0.1)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self.exit_status = self._process.wait(120)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def descendants(self) -> list[psutil.Process]:
        """Return its descendants."""
        found: list[psutil.Process] = psutil.Process(self._process.pid).children(recursive=True)
        return found

    def memory_bytes(self) -> int:
        """Return the memory of all its processes (PSS: shared memory counts once)."""
        return total_pss_bytes(read_usage(self._process.pid))

    def kill_and_start(self) -> None:
        """Kill the command like the OOM killer, wait until its processes have ended, and start it like systemd."""
        left = self.descendants()
        self._process.kill()
        self._process.wait()
        psutil.wait_procs(left, timeout=_GONE_TIMEOUT_S)
        self._start()

    def _start(self) -> None:
        environment = {**os.environ, ADMIN_KEY_VARIABLE: self.place.admin_key}
        with self.log.open("a") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )
