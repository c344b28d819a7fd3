"""Starting the server and the `mlcls` command as a user does."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

from mlcls.repository.settings import Target
from mlcls.server.options import ServerOptions
from mlcls.server.process import TritonServer

ROOT = Path(__file__).resolve().parents[1]


def start_server(repository: Path, *models: str, target: Target = "embedded") -> TritonServer:
    """A server on free ports, ready."""
    options = dataclasses.replace(ServerOptions.on_free_ports(repository, *models), target=target)
    return TritonServer(options).start()


def mlcls_command(*arguments: str | Path) -> list[str]:
    """The command line of `mlcls` in this environment."""
    return [sys.executable, "-m", "mlcls.cli", *map(str, arguments)]


def run_mlcls(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs `mlcls` to its end."""
    return subprocess.run(
        mlcls_command(*arguments),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment},
    )
