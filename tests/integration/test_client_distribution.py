"""The client as it is installed: a wheel of its own, with nothing but what it says that it needs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from mlcls.server.process import TritonServer
from support.processes import ROOT

_UV = ROOT / ".tools" / "bin" / "uv"
MAX_IMPORT_S = 0.5


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([_UV, "build", "--quiet", "--wheel", "--out-dir", folder, ROOT / "client"], check=True)
    (built,) = folder.glob("mlcls_client-*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has the client and what it requires."""
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    subprocess.run([_UV, "venv", "--quiet", "--python", sys.executable, folder], check=True)
    subprocess.run([_UV, "pip", "install", "--quiet", "--python", folder / "bin" / "python", wheel], check=True)
    return folder / "bin" / "python"


def test_the_wheel_has_its_types_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "mlcls_client/py.typed" in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"mlcls_client"}


def test_it_works_alone(python: Path, small_server: TritonServer, tmp_path: Path) -> None:
    Image.new("RGB", (60, 40), (200, 30, 30)).save(tmp_path / "a.png")
    predict: list[str | Path] = [python, "-m", "mlcls_client", "predict", "small_with_sigmoid"]
    for protocol, url in (("grpc", small_server.grpc_url), ("http", small_server.http_url)):
        options = ["--json", "--url", url, "--protocol", protocol, "--threshold", "0", "--save-img", protocol]
        done = subprocess.run([*predict, "a.png", *options], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert len(json.loads(done.stdout)["label_names"]) == 5
        assert (tmp_path / protocol / "a_res.png").exists()
    assert subprocess.run([python.parent / "mlcls-client", "--help"], capture_output=True).returncode == 0
    assert subprocess.run([python, "-c", "import cv2"], capture_output=True).returncode == 1, "no OpenCV comes with it"
    Image.new("RGB", (60, 40)).save(tmp_path / "a.pdf")
    grpc = ["--url", small_server.grpc_url]
    done = subprocess.run([*predict, "a.pdf", *grpc], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert "pip install 'mlcls-client[pdf]'" in done.stderr


def test_importing_it_takes_no_time_to_speak_of(python: Path) -> None:
    code = "import mlcls_client, mlcls_client.cli.main, sys; print(sorted(sys.modules))"
    times = []
    for _ in range(5):
        done = subprocess.run([python, "-X", "importtime", "-c", code], capture_output=True, text=True, check=True)
        (line,) = re.findall(r"(\d+) \| mlcls_client$", done.stderr, re.MULTILINE)
        times.append(int(line) / 1e6)
    assert not {"numpy", "PIL", "grpc", "aiohttp", "tritonclient"} & set(re.findall(r"\w+", done.stdout))
    # The best of several: another process may have had the processor.
    assert min(times) < MAX_IMPORT_S
