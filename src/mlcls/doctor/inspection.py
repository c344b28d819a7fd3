"""Gathers `MachineFacts` from the system, a repository and a running server."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from mlcls.base.machine import Machine, read_cores, read_cpu_flags, read_machine
from mlcls.doctor.facts import (
    EMBEDDED_VERSIONS,
    MachineFacts,
    RepositoryFacts,
    ServedModelFacts,
    ServerFacts,
    TritonFacts,
    Version,
)
from mlcls.engines.tensorrt.plan import check_plan
from mlcls.errors import MlclsError
from mlcls.repository.configurations import require_fresh
from mlcls.repository.manifest import Manifest
from mlcls.repository.models import Repository
from mlcls.repository.names import PLAN_FILE, STEP_SUFFIXES
from mlcls.repository.settings import DEFAULT_MODEL_SETTINGS
from mlcls.server.http_api import HttpApi, HttpStatusError, NoAnswerError
from mlcls.server.installation import embedded_installation, system_installation

_TIMEOUT_S: Final = 10.0

# The request that tests whether an API is closed: its path, and the body of a POST.
_API_REQUESTS: Final[Mapping[str, tuple[str, bytes | None]]] = {
    "model-repository": ("/v2/repository/index", b"{}"),
    "shared-memory": ("/v2/systemsharedmemory/status", None),
    "logging": ("/v2/logging", None),
    "trace": ("/v2/trace/setting", None),
    "statistics": ("/v2/models/stats", None),
}

# Files with a container's memory limit and usage: cgroup 2, cgroup 1.
_MEMORY_LIMITS: Final = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def inspect_machine(root: Path, tritonserver: Path | None = None, url: str | None = None) -> MachineFacts:
    """Gather everything that `mlcls doctor` judges; change nothing.

    Args:
        root: The model repository.
        tritonserver: Folder of a Triton, laid out as in NVIDIA's container; by default the embedded one.
        url: HTTP address of a running server, `HOST:PORT`; None asks no server.

    Raises:
        ServerError: The address is invalid.
    """
    machine = read_machine()
    triton: TritonFacts | None = None
    triton_fault = None
    try:
        triton = inspect_triton(tritonserver)
    except MlclsError as error:
        triton_fault = str(error)
    return MachineFacts(
        python=sys.version_info[:3],
        glibc=parse_version(platform.libc_ver()[1]) if platform.libc_ver()[0] == "glibc" else None,
        cores=read_cores(),
        memory_bytes=read_available_memory(),
        shared_memory_bytes=shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else None,
        cpu_flags=read_cpu_flags(),
        gpus=machine.gpus,
        tensorrt=machine.tensorrt,
        triton=triton,
        triton_fault=triton_fault,
        repository=inspect_repository(root, machine) if root.is_dir() else None,
        server=inspect_server(url) if url else None,
    )


def inspect_triton(tritonserver: Path | None) -> TritonFacts:
    """Return the tritonserver of a folder, or the embedded one.

    Raises:
        ServerError: There is none.
        MissingExtraError: The embedded one is not installed.
    """
    if tritonserver is None:
        executable = embedded_installation().executable
        release = importlib.metadata.version("nvidia-pytriton")
        return TritonFacts(str(executable), EMBEDDED_VERSIONS.get(release), is_embedded=True)
    executable = system_installation(tritonserver).executable
    # NVIDIA's image has the version in both places
    file = tritonserver / "TRITON_VERSION"
    text = file.read_text(encoding="utf-8") if file.is_file() else os.environ.get("TRITON_SERVER_VERSION", "")
    return TritonFacts(str(executable), parse_version(text), is_embedded=False)


def parse_version(text: str) -> Version | None:
    """Return the numbers at the start of a version; None if there are none."""
    match = re.match(r"\s*v?(\d+(?:\.\d+)*)", text)
    return tuple(map(int, match[1].split("."))) if match else None


def read_available_memory(system: Path = Path("/")) -> int:
    """Return the bytes available to a new process: what the system has, at most what the container's limit leaves.

    Args:
        system: Root of the file system.
    """
    available = 0
    for line in (system / "proc/meminfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
    for limit, usage in _MEMORY_LIMITS:
        try:
            left = int((system / limit.lstrip("/")).read_text()) - int((system / usage.lstrip("/")).read_text())
        except (OSError, ValueError):  # not there, or "max"
            continue
        available = min(available, max(left, 0))
    return available


def inspect_repository(root: Path, machine: Machine) -> RepositoryFacts:
    """Return the imported models of a repository, with what is wrong with each."""
    repository = Repository(root)
    imported = [name for name in repository.models() if repository.is_imported(name)]
    models = tuple(_inspect_model(repository, name, machine) for name in imported)
    return RepositoryFacts(str(root), models, shutil.disk_usage(root).free)


def _inspect_model(repository: Repository, name: str, machine: Machine) -> ServedModelFacts:
    faults: list[str] = []
    pixels_bytes = 0
    weights: dict[str, int] = {}
    plan_fault: str | None = None
    settings = DEFAULT_MODEL_SETTINGS
    try:
        settings = repository.settings(name)
        version = repository.active(name)
        version.check()
        faults += _find_faults(functools.partial(require_fresh, version))
        pixels_bytes = version.spec.transform.height * version.spec.transform.width * 3
        for suffix in STEP_SUFFIXES:
            faults += _find_faults(functools.partial(version.verify, suffix))
        folder = version.engine_folder
        manifest = Manifest.read(folder)
        weights = {record.file: manifest.files[record.file].size_bytes for record in manifest.engines}
        if PLAN_FILE in weights:
            plan_fault = next(_find_faults(functools.partial(check_plan, folder, PLAN_FILE, machine)), None)
    except MlclsError as error:
        faults.append(str(error))
    return ServedModelFacts(name, pixels_bytes, weights, tuple(faults), plan_fault, settings)


def _find_faults(check: Callable[[], object]) -> Iterator[str]:
    try:
        check()
    except MlclsError as error:
        yield str(error)


def inspect_server(url: str) -> ServerFacts:
    """Ask a server for its version, and for everything that should need a key.

    Args:
        url: `HOST:PORT`, or a URL.

    Raises:
        ServerError: The address is invalid.
    """
    api = HttpApi(url, allow_proxy=True)
    version = None
    try:
        version = _version_of(api.request("/v2", _TIMEOUT_S))
    except NoAnswerError as error:
        return ServerFacts(api.url, api.is_local, fault=f"no answer over HTTP ({error}); is this its HTTP port?")
    except HttpStatusError:
        pass
    open_apis = []
    for name, (path, data) in _API_REQUESTS.items():
        with contextlib.suppress(HttpStatusError, NoAnswerError):
            api.request(path, _TIMEOUT_S, data)
            open_apis.append(name)
    return ServerFacts(api.url, api.is_local, version, tuple(open_apis))


def _version_of(body: bytes) -> Version | None:
    try:
        return parse_version(str(json.loads(body)["version"]))
    except (ValueError, KeyError, TypeError):
        return None
