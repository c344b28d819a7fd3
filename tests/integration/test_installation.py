"""What pip installs into an empty environment, used from an empty folder outside of the checkout."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from mlcls.base.processes import free_ports
from support.processes import ROOT
from support.serve_process import port_options

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


class Installed:
    """An environment that pip filled, and an empty folder to work in."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "environment" / "bin"
        self.folder = folder / "work"
        self.folder.mkdir(parents=True)
        subprocess.run([sys.executable, "-m", "venv", self.bin.parent], check=True)

    def pip_install(self, *arguments: str | Path) -> None:
        self.run("pip", "install", "--quiet", "--disable-pip-version-check", *arguments)

    def run(self, program: str, *arguments: str | Path, code: int = 0) -> str:
        """Return what a program of the environment wrote to both streams."""
        done = subprocess.run(
            [self.bin / program, *arguments],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == code, done.stdout
        return done.stdout

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
        return kept | {"PATH": f"{self.bin}:{os.environ['PATH']}"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    folder = tmp_path_factory.mktemp("pip")
    uv = ROOT / ".tools" / "bin" / "uv"
    for source in (ROOT, ROOT / "client"):
        subprocess.run([uv, "build", "--quiet", "--wheel", "--out-dir", folder / "wheels", source], check=True)
    installed = Installed(folder)
    (wheel,) = (folder / "wheels").glob("mlcls-*.whl")
    (client,) = (folder / "wheels").glob("mlcls_client-*.whl")
    installed.pip_install(f"{wheel}[serve,convert]", f"{client}[pdf]")
    yield installed
    shutil.rmtree(folder, ignore_errors=True)  # three gigabytes


def test_a_model_is_imported_served_and_asked(installed: Installed) -> None:
    installed.run("mlcls", "import", ROOT / "demo_model" / "inference", "--name", "demo_colors")
    Image.new("RGB", (80, 60), (20, 60, 200)).save(installed.folder / "blue.pdf")
    http_url, grpc_url, metrics_url = (f"127.0.0.1:{port}" for port in free_ports(3))
    with subprocess.Popen(
        [installed.bin / "mlcls", "serve", "demo_colors", *port_options(http_url, grpc_url, metrics_url)],
        cwd=installed.folder,
        env=installed.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as server:
        try:
            assert server.stdout is not None
            lines = [server.stdout.readline(), server.stdout.readline()]
            assert lines[1].startswith("Ready"), (lines, server.stdout.read())
            for program in ("mlcls", "mlcls-client"):
                answer = installed.run(program, "predict", "demo_colors", "blue.pdf", "--url", grpc_url, "--json")
                assert json.loads(answer)["label_names"] == ["blue"]
        finally:
            server.send_signal(signal.SIGINT)


def test_a_missing_extra_is_named_with_the_commands_that_install_it(installed: Installed) -> None:
    expected = "pip install 'mlcls[train]' && pip install --no-deps paddleclas==2.6.0"
    assert expected in installed.run("mlcls", "export", "PP-LCNet_x1_0_ML", "--output", "exported", code=1)


def test_networks_are_exported_after_the_commands_of_the_error(installed: Installed) -> None:
    (wheel,) = (installed.folder.parent / "wheels").glob("mlcls-*.whl")
    installed.pip_install(f"{wheel}[train,int8]")
    installed.pip_install("--no-deps", "paddleclas==2.6.0")
    installed.run("mlcls", "export", "PP-LCNet_x1_0_ML", "--output", "exported")
    installed.run("mlcls", "import", "exported", "--name", "exported")
    faults = installed.run("python", "-m", "pip", "check", code=1).splitlines()
    assert all(line.startswith("paddleclas 2.6.0") for line in faults), faults
