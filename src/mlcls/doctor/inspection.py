"""Gathers `MachineFacts` from the system, a repository and a running server."""

from __future__ import annotations

import functools
import http.client
import importlib.metadata
import ipaddress
import json
import os
import platform
import re
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

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
from mlcls.errors import MlclsError, ServerError
from mlcls.repository.configurations import require_fresh
from mlcls.repository.manifest import Manifest
from mlcls.repository.models import Repository
from mlcls.repository.names import PLAN_FILE, STEP_SUFFIXES
from mlcls.repository.settings import DEFAULT_MODEL_SETTINGS
from mlcls.server.installation import embedded_installation, system_installation

_TIMEOUT_S: Final = 10.0

# How each API that should be closed is asked: method and path.
_API_REQUESTS: Final = {
    "model-repository": ("POST", "/v2/repository/index"),
    "shared-memory": ("GET", "/v2/systemsharedmemory/status"),
    "logging": ("GET", "/v2/logging"),
    "trace": ("GET", "/v2/trace/setting"),
    "statistics": ("GET", "/v2/models/stats"),
}

# Where the kernel says how much memory a container may take, and how much it takes: cgroup 2, cgroup 1.
_MEMORY_LIMITS: Final = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def inspect_machine(root: Path, tritonserver: Path | None = None, url: str | None = None) -> MachineFacts:
    """Look at everything that `mlcls doctor` judges; change nothing.

    Args:
        root: The model repository.
        tritonserver: Folder of a Triton like NVIDIA's container has it; by default the embedded one.
        url: HTTP address of a running server, `HOST:PORT`; None asks none.

    Raises:
        ServerError: The address is none.
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
    # NVIDIA's image says it in both places
    file = tritonserver / "TRITON_VERSION"
    text = file.read_text(encoding="utf-8") if file.is_file() else os.environ.get("TRITON_SERVER_VERSION", "")
    return TritonFacts(str(executable), parse_version(text), is_embedded=False)


def parse_version(text: str) -> Version | None:
    """Return the numbers at the start of a version; None where there are none."""
    match = re.match(r"\s*v?(\d+(?:\.\d+)*)", text)
    return tuple(map(int, match[1].split("."))) if match else None


def read_available_memory(system: Path = Path("/")) -> int:
    """Return bytes that a new process could take: what the system has, and no more than the container's limit leaves.

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
    """Return the imported models of a repository, and what is wrong with each."""
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
    """Ask a server for its version, and for everything that only a key should open.

    Args:
        url: `HOST:PORT`, or a URL.

    Raises:
        ServerError: The address is none.
    """
    parts = urlsplit(url if "//" in url else f"http://{url}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or parts.scheme not in ("http", "https"):
        raise ServerError(f"Expected the address of Triton's HTTP API like 127.0.0.1:8000, got {url!r}.")
    base = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
    is_local = _is_local(host)
    opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if is_local else []))
    try:
        status, body = _ask(opener, "GET", f"{base}/v2")
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        return ServerFacts(base, is_local, fault=f"no answer over HTTP ({reason}); is port {port or 80} its HTTP port?")
    version = _version_of(body) if status == 200 else None
    open_apis = []
    for api, (method, path) in _API_REQUESTS.items():
        try:
            status, _ = _ask(opener, method, base + path)
        except (OSError, http.client.HTTPException):
            continue
        if status == 200:
            open_apis.append(api)
    return ServerFacts(base, is_local, version, tuple(open_apis))


def _ask(opener: urllib.request.OpenerDirector, method: str, url: str) -> tuple[int, bytes]:
    """Return status and body of one request; a refusal is an answer too."""
    request = urllib.request.Request(url, data=b"{}" if method == "POST" else None, method=method)
    try:
        with opener.open(request, timeout=_TIMEOUT_S) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, b""


def _version_of(body: bytes) -> Version | None:
    try:
        return parse_version(str(json.loads(body)["version"]))
    except (ValueError, KeyError, TypeError):
        return None


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
