"""Start the server and the `mlcls` command as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

import mlcls
from mlcls.repository.settings import Target
from mlcls.server.process import TritonServer

ROOT = Path(__file__).resolve().parents[2]


def start_server(repository: Path, *models: str, target: Target = "embedded") -> TritonServer:
    """Return a ready server on free ports."""
    return mlcls.serve(*models, repository=repository, target=target)


def mlcls_command(*arguments: str | Path) -> list[str]:
    """Return the command line of `mlcls` in this environment."""
    return [sys.executable, "-m", "mlcls.cli", *map(str, arguments)]


def run_mlcls(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `mlcls` to its end."""
    return subprocess.run(
        mlcls_command(*arguments),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment},
    )


def assert_ended(processes: Iterable[psutil.Process], timeout_s: float) -> None:
    """Waits until none of the processes runs any more; a zombie has ended, whenever its parent takes note."""
    deadline = time.monotonic() + timeout_s
    while running := [process for process in processes if is_running(process)]:
        assert time.monotonic() < deadline, running
        time.sleep(0.05)


def is_running(process: psutil.Process) -> bool:
    """Whether the process has not ended."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
