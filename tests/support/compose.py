"""What Docker Compose makes of docker-compose.yml."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from support.processes import ROOT

COMPOSE_FILE: Final = ROOT / "docker-compose.yml"


def compose(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Docker Compose on the file, with these variables alone."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLCLS_", "COMPOSE_"))}
    command: list[str | Path] = [
        Path(sys.executable).parent / "docker-compose",
        "--project-directory",
        ROOT,
        *arguments,
    ]
    return subprocess.run(command, env={**kept, **environment}, capture_output=True, text=True)


def configure(*profiles: str, **environment: str) -> dict[str, Any]:
    """Return the configuration that Docker Compose makes of the file."""
    options = [f"--profile={profile}" for profile in profiles]
    process = compose(*options, "config", "--format=json", **{"MLCLS_ADMIN_KEY": "key", **environment})
    assert process.returncode == 0, process.stderr
    configuration: dict[str, Any] = json.loads(process.stdout)
    return configuration
