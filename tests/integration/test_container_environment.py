"""What the images run, outside of an image: the installation with Python 3.12, and the command of the container."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from mlcls.base.machine import read_gpus, read_tensorrt_version
from mlcls.base.processes import free_ports
from mlcls.server.http_api import HttpApi, HttpStatusError
from mlcls.server.installation import embedded_installation
from mlcls_client import create_model
from support.helm import container_of, find, render
from support.processes import ROOT, mlcls_command, run_mlcls
from support.serve_process import port_options
from support.served_models import SmallModels

pytestmark = pytest.mark.slow

MODEL = "small_with_sigmoid"


def find_python() -> str:
    """A Python of the images' version."""
    version = "import sys, venv; sys.exit(sys.version_info[:2] != (3, 12))"
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [Path(sys.executable), Path(shutil.which("python3.12") or sys.executable)]
    for candidate in [*candidates, *sorted(pyenv.glob("3.12*/bin/python3.12"))]:
        if subprocess.run([candidate, "-c", version], capture_output=True).returncode == 0:
            return str(candidate)
    pytest.skip("there is no Python 3.12 here, which the images have")


def install_as_the_image_does(folder: Path, requirements: str) -> Path:
    """The environment that the image's stages make: installed with one Python, then given to another."""
    python = find_python()
    install: list[str | Path] = ["sh", ROOT / "docker" / "install.sh", python, folder]
    process = subprocess.run([*install, ROOT / "requirements" / requirements, ROOT], capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    for link in (folder / "bin").glob("python*"):
        link.unlink()
    subprocess.run([python, "-m", "venv", "--without-pip", folder], check=True)
    return folder


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install_as_the_image_does(tmp_path_factory.mktemp("image") / "mlcls", "triton.txt")


def run_in(environment: Path, *command: str | Path) -> subprocess.CompletedProcess[str]:
    kept = {"PATH": f"{environment}/bin:/usr/bin:/bin", "HOME": "/nonexistent"}
    return subprocess.run([environment / "bin" / command[0], *command[1:]], env=kept, capture_output=True, text=True)


def test_the_image_imports_decodes_and_has_no_build_tools(environment: Path, sample_images: list[Path]) -> None:
    code = (
        "import sys, numpy, mlcls.backends.triton_stub, mlcls.model.postprocess, mlcls.server.process\n"
        "from mlcls.images.decoding import decode_image\n"
        "print(numpy.__file__, decode_image(open(sys.argv[1], 'rb').read()).shape)"
    )
    process = run_in(environment, "python3", "-c", code, sample_images[0])
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith(str(environment))
    assert process.stdout.rstrip().endswith(", 3)")
    for module in ("pip", "hatchling", "setuptools"):
        assert run_in(environment, "python3", "-c", f"import {module}").returncode != 0
    assert not list((environment / "bin").glob("pip*"))


def test_the_image_checks_the_repository(environment: Path, small_models: SmallModels) -> None:
    assert run_in(environment, "mlcls", "--version").stdout.startswith("mlcls ")
    process = run_in(environment, "mlcls", "repository", "--check", "--repository", ROOT / "model_repository")
    assert process.returncode == 0, process.stderr
    for arguments, words in (
        (["--tritonserver", "/nonexistent"], "Expected bin/tritonserver and backends/ in /nonexistent"),
        ([], "listens on this machine only"),
    ):
        process = run_in(
            environment, "mlcls", "serve", MODEL, "--repository", small_models.repository, "--host=0.0.0.0", *arguments
        )
        assert process.returncode == 1
        assert words in process.stderr


def test_the_image_that_builds_engines(root: Path, tmp_path: Path) -> None:
    environment = install_as_the_image_does(tmp_path / "mlcls", "tensorrt.txt")
    build = ("mlcls", "build-engine", MODEL, "--repository", root, "--engine")
    process = run_in(environment, *build, "fp16")
    assert process.returncode == 0, process.stderr
    assert (root / f"{MODEL}_engine" / "1" / "model.fp16.onnx").is_file()
    if not read_gpus():
        assert "the driver shows none here" in run_in(environment, *build, "tensorrt").stderr
    if read_tensorrt_version() is None:
        process = run_in(environment, "python3", ROOT / "docker" / "check_tensorrt.py")
        assert (process.returncode, process.stderr) == (1, "Expected TensorRT's libnvinfer in the image, got none.\n")


@pytest.fixture(scope="module")
def tritonserver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded tritonserver, laid out as NVIDIA's image has its own in /opt/tritonserver."""
    installation = embedded_installation()
    assert installation.stub is not None
    root = tmp_path_factory.mktemp("opt") / "tritonserver"
    for name in ("bin", "lib"):
        (root / name).mkdir(parents=True)
    (root / "bin" / "tritonserver").symlink_to(installation.executable)
    shutil.copytree(installation.backends, root / "backends")
    stub = root / "backends" / "python" / installation.stub.name
    shutil.copyfile(installation.stub, stub)
    stub.chmod(0o755)
    for folder, pattern in zip(installation.library_folders, ("*.so*", "libpython*.so*"), strict=True):
        for library in folder.glob(pattern):
            (root / "lib" / library.name).symlink_to(library)
    return root


@pytest.fixture
def read_only_repository(root: Path) -> Iterator[Path]:
    paths = [root, *root.rglob("*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = {path: path.stat().st_mtime_ns for path in paths}
    yield root
    assert {path: path.stat().st_mtime_ns for path in [root, *root.rglob("*")]} == before
    for path in paths:
        path.chmod(0o755 if path.is_dir() else 0o644)


def test_the_command_of_the_container(
    tritonserver: Path, read_only_repository: Path, sample_images: list[Path], tmp_path: Path
) -> None:
    """With the log on standard output, and with the APIs closed that a server which others reach has to close."""
    http_url, grpc_url, metrics_url = (f"127.0.0.1:{port}" for port in free_ports(3))
    command = serve_command(tritonserver, read_only_repository, http_url, grpc_url, metrics_url)
    output = tmp_path / "output"
    with output.open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, "MLCLS_ADMIN_KEY": "key"}, cwd=tmp_path
        )
    try:
        health = ["health", "--url", http_url, "--repository", str(read_only_repository)]
        while run_mlcls(*health).returncode:
            assert process.poll() is None, output.read_text()
        (result,) = create_model(MODEL, url=grpc_url).predict(str(sample_images[0]))
        assert result.json

        api = HttpApi(http_url)
        with pytest.raises(HttpStatusError, match="403"):
            api.request("/v2/models/stats", 10)
        statistics = json.loads(api.request("/v2/models/stats", 10, headers={"mlcls-admin-key": "key"}))
        assert MODEL in {one["name"] for one in statistics["model_stats"]}
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    text = output.read_text(errors="replace")
    assert process.returncode == 0
    assert f"successfully loaded '{MODEL}'" in text
    assert text.rstrip().endswith("Stopped.")


@pytest.mark.parametrize("source", ["helm", "kserve"])
def test_the_command_and_the_probes_of_a_pod(
    source: str, tritonserver: Path, read_only_repository: Path, sample_images: list[Path], tmp_path: Path
) -> None:
    """As process 1, which nothing reaps for, where this machine allows it: a pod has no init."""
    if source == "helm":
        container = container_of(find(render({"models": [MODEL]}), "Deployment", "animals-mlcls"))
    else:
        container = yaml.safe_load((ROOT / "deploy" / "kserve" / "serving-runtime.yaml").read_text())["spec"][
            "containers"
        ][0]
        container["args"].append(MODEL)
    urls = [f"127.0.0.1:{port}" for port in free_ports(3)]
    here = {"/opt/tritonserver": str(tritonserver), "/models": str(read_only_repository), "0.0.0.0": "127.0.0.1"}
    here["/mnt/models"] = here["/models"]

    def localize(text: str) -> str:
        option, equals, value = text.rpartition("=")
        return f"{option}{equals}{here.get(value, value)}"

    environment = {each["name"]: localize(each.get("value", "key")) for each in container["env"]}
    command = mlcls_command(*map(localize, container["args"]), *port_options(*urls))
    probes = {
        tuple(container[name]["exec"]["command"][1:]) for name in ("startupProbe", "readinessProbe", "livenessProbe")
    }
    health = ["--url", urls[0], "--metrics-url", f"http://{urls[2]}/metrics"]
    as_process_1 = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"] if os.geteuid() == 0 else []
    if as_process_1 and subprocess.run([*as_process_1, "true"], capture_output=True).returncode:
        as_process_1 = []
    output = tmp_path / "output"
    with output.open("wb") as log:
        process = subprocess.Popen(
            [*as_process_1, *command], stdout=log, stderr=log, env={**os.environ, **environment}, cwd=tmp_path
        )
    try:
        for probe in probes:
            while run_mlcls(*probe, *health, **environment).returncode:
                assert process.poll() is None, output.read_text()
        (result,) = create_model(MODEL, url=urls[1]).predict(str(sample_images[0]))
        assert result.json
    finally:
        served = psutil.Process(process.pid)
        (served.children()[0] if as_process_1 else served).send_signal(signal.SIGTERM)
        process.wait(60)
    assert process.returncode == 0
    assert output.read_text(errors="replace").rstrip().endswith("Stopped.")


def test_a_container_that_cannot_start_says_why(tritonserver: Path, small_models: SmallModels, tmp_path: Path) -> None:
    backends = tmp_path / "python_backends"
    shutil.copytree(ROOT / "python_backends", backends)
    (backends / "mlcls_engine" / "model.py").write_text("raise RuntimeError('a planted fault')\n")
    process = subprocess.run(
        serve_command(tritonserver, small_models.repository),
        env={**os.environ, "MLCLS_PYTHON_BACKENDS": str(backends)},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 1
    *log, last_line = process.stderr.splitlines()
    assert any("a planted fault" in line for line in log), "Triton's own log"
    assert last_line.startswith(f"mlcls serve: tritonserver ended with exit status 1: failed to load '{MODEL}_engine'")
    assert "a planted fault" in last_line


def serve_command(tritonserver: Path, repository: Path, *urls: str) -> list[str]:
    """The command of the container, on this machine alone and on ports of its own."""
    paths = ["--tritonserver", str(tritonserver), "--repository", str(repository)]
    return mlcls_command("serve", MODEL, *paths, "--log-file=-", *port_options(*urls))
