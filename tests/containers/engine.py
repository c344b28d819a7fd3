"""A Docker engine of the tests' own, and Docker Compose with the project's files on it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from support.compose import compose

_START_TIMEOUT_S: Final = 60.0

Completed = subprocess.CompletedProcess[str]


class Engine:
    """`dockerd` with its images in a folder; a context manager that starts and ends it."""

    def __init__(self, folder: Path) -> None:
        """Prepare it.

        Args:
            folder: Where images stay between runs.

        Raises:
            pytest.skip.Exception: It cannot run here.
        """
        if os.geteuid() != 0:
            pytest.skip("a Docker engine of one's own needs root")
        for program in ("dockerd", "docker", "debootstrap"):
            if shutil.which(program) is None:
                pytest.skip(f"{program} was not found: apt-get install --no-install-recommends docker.io debootstrap")
        self._run_folder = Path(tempfile.mkdtemp(prefix="mlcls-dockerd-"))
        self._folder = folder
        self._host = f"unix://{self._run_folder}/docker.sock"
        self.variables = {"DOCKER_HOST": self._host, "DOCKER_BUILDKIT": "0"}
        self.environment = {**os.environ, **self.variables}

    def __enter__(self) -> Engine:
        options = [f"--data-root={self._folder}", f"--exec-root={self._run_folder}/exec", f"--host={self._host}"]
        options += [f"--pidfile={self._run_folder}/pid"]
        log = self._run_folder / "log"
        with log.open("w") as file:
            self._process = subprocess.Popen(["dockerd", *options], stdout=file, stderr=file, start_new_session=True)
        deadline = time.monotonic() + _START_TIMEOUT_S
        while self.docker("info", check=False).returncode:
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._process.kill()
                pytest.skip(f"the Docker engine does not start here: {log.read_text()[-500:]}")
            time.sleep(0.2)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(60)
        shutil.rmtree(self._run_folder, ignore_errors=True)

    def docker(self, *arguments: str | Path, check: bool = True) -> Completed:
        """Run a command of `docker`."""
        command = ["docker", *map(str, arguments)]
        process = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        return _checked(process) if check else process

    def inspect(self, container: str) -> dict[str, Any]:
        """Return what the engine says of a container."""
        found: dict[str, Any] = json.loads(self.docker("inspect", container).stdout)[0]
        return found

    def has_image(self, name: str) -> bool:
        """Return whether an image exists."""
        return self.docker("image", "inspect", name, check=False).returncode == 0

    def require(self, image: str) -> None:
        """Run a container that downloads a package, as the build of the project's image does.

        Raises:
            pytest.skip.Exception: The engine runs none, or it reaches no package index.
        """
        download = "python3.12 -m venv /tmp/x && /tmp/x/bin/pip download --quiet --no-deps --dest /tmp/x hatchling"
        process = self.docker("run", "--rm", "--publish=127.0.0.1::80", image, "sh", "-c", download, check=False)
        if process.returncode:
            pytest.skip(f"no container with a network runs here: {process.stderr[-500:]}")

    def import_image(self, name: str, root: Path, changes: Mapping[str, str]) -> None:
        """Make an image of a folder, with instructions of a Dockerfile."""
        options = [text for key, value in changes.items() for text in ("--change", f"{key} {value}")]
        with subprocess.Popen(["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE) as archive:
            command = ["docker", "import", *options, "-", name]
            process = subprocess.run(
                command, stdin=archive.stdout, env=self.environment, capture_output=True, text=True
            )
        assert process.returncode == 0, process.stderr


class Compose:
    """Docker Compose with the project's file, with variables that a user may set."""

    def __init__(self, engine: Engine, project: str, variables: Mapping[str, str]) -> None:
        self._engine = engine
        self._variables = {**engine.variables, **variables}
        self._project = project

    def __call__(self, *arguments: str, check: bool = True, **variables: str) -> Completed:
        """Run a command of `docker compose`."""
        options = ("--project-name", self._project, "--profile=*")
        process = compose(*options, *arguments, **{**self._variables, **variables})
        return _checked(process) if check else process

    def start(self, *services: str, **variables: str) -> None:
        """Start services and wait until they are healthy."""
        process = self("up", "--detach", "--no-build", "--wait", *services, check=False, **variables)
        assert process.returncode == 0, f"{process.stderr}\n{self('logs', '--tail=40', *services).stdout}"

    def container(self, service: str) -> str:
        """Return the name of a service's container."""
        return f"{self._project}-{service}-1"

    def health(self, service: str) -> str:
        """Return a service's health, as Docker tells it."""
        health: str = self._engine.inspect(self.container(service))["State"]["Health"]["Status"]
        return health

    def execute(self, service: str, *command: str, check: bool = True) -> Completed:
        """Run a command in a service's container."""
        return self._engine.docker("exec", self.container(service), *command, check=check)


def _checked(process: Completed) -> Completed:
    assert process.returncode == 0, f"{process.args}: {process.stdout[-3000:]}{process.stderr[-3000:]}"
    return process
