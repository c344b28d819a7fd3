"""The checks of `mlcls doctor`; each yields its findings."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

from mlcls.base.files import LOCK_NAME, STAGING_PREFIX, is_locked
from mlcls.base.machine import (
    BF16_FLAGS,
    INT8_FLAGS,
    Machine,
    find_bf16_units,
    find_int8_units,
    read_available_memory,
    read_cores,
    read_cpu_flags,
    read_machine,
)
from mlcls.doctor.models import ImportedModel, read_models
from mlcls.errors import MlclsError
from mlcls.repository.models import Repository
from mlcls.repository.names import INT8_FILE, PLAN_FILE, STEP_SUFFIXES
from mlcls.repository.settings import MAX_BATCH_SIZE, Target
from mlcls.server.http_api import HttpApi, HttpStatusError, NoAnswerError
from mlcls.server.installation import embedded_installation, system_installation

Level = Literal["ok", "note", "warning", "problem"]
Version = tuple[int, ...]

# Version of tritonserver by release of the wheel nvidia-pytriton; the program itself does not report it.
EMBEDDED_VERSIONS: Final[Mapping[str, Version]] = {"0.7.0": (2, 51, 0)}
# Triton before 2.71.0 (container 26.07) lacks fixes from NVIDIA's security bulletins of 2025 and 2026 (5687 to 5875).
SECURITY_FLOOR: Final[Version] = (2, 71)
OLDEST_PYTHON: Final[Version] = (3, 10)
NEWEST_PYTHON: Final[Version] = (3, 12)
# The embedded tritonserver is linked with it.
OLDEST_GLIBC: Final[Version] = (2, 35)

# Free disk that a new version or engine may need, in sizes of a model: it is written beside the one that is served.
_DISK_IN_MODELS: Final = 2
_MIN_DISK_BYTES: Final = 200_000_000

_TIMEOUT_S: Final = 10.0
# The request that tests whether an API is closed: its path, and the body of a POST.
_API_REQUESTS: Final[Mapping[str, tuple[str, bytes | None]]] = {
    "model-repository": ("/v2/repository/index", b"{}"),
    "shared-memory": ("/v2/systemsharedmemory/status", None),
    "logging": ("/v2/logging", None),
    "trace": ("/v2/trace/setting", None),
    "statistics": ("/v2/models/stats", None),
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """What was found about a topic, and what to do, each one line; the remedy is empty if there is nothing to do.

    A `problem` will not work, or is open to others; a `warning` may not; a `note` is worth knowing.
    """

    level: Level
    topic: str
    found: str
    remedy: str = ""


def examine(root: Path, tritonserver: Path | None = None, url: str | None = None) -> list[Finding]:
    """Check this machine, a model repository and, if its HTTP address `HOST:PORT` is given, a server; change nothing.

    `tritonserver` is the folder of a Triton, laid out as in NVIDIA's container; by default the embedded one.

    Raises:
        ServerError: The address is invalid.
    """
    machine, cores, memory_bytes = read_machine(), read_cores(), read_available_memory()
    shared_memory_bytes = shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else None
    models = read_models(root, machine) if root.is_dir() else []
    # the embedded Triton has no backend of its own
    targets: tuple[Target, ...] = ("embedded", "int8") if tritonserver is None else ("embedded", "cpu", "int8")
    return [
        check_python(sys.version_info[:3]),
        check_glibc(*platform.libc_ver()),
        check_triton(tritonserver),
        *check_processor(cores, read_cpu_flags(), models),
        *check_gpu(machine, models),
        *check_repository(root, models),
        *check_leftovers(root),
        *([check_disk(shutil.disk_usage(root).free, models)] if root.is_dir() else ()),
        *check_tuning(cores, models),
        *check_memory(memory_bytes, models, targets, cores),
        check_shared_memory(shared_memory_bytes, models),
        *([check_queues(memory_bytes, models)] if models else ()),
        *(check_server(url) if url else ()),
    ]


def check_python(version: Version) -> Finding:
    """Check the version of Python."""
    wanted = f"{_text(OLDEST_PYTHON)} to {_text(NEWEST_PYTHON)}"
    is_wrong = not OLDEST_PYTHON <= version[:2] <= NEWEST_PYTHON
    remedy = f"Run mlcls with Python {wanted}, which Triton has stubs for."
    return _judge("Python", f"Python {_text(version)}", (is_wrong, "problem", remedy))


def check_glibc(library: str, release: str) -> Finding:
    """Check the C library, by its name and version."""
    version = parse_version(release)
    if library != "glibc" or version is None:
        return Finding("problem", "glibc", "no glibc", "Use Linux with glibc: the wheels and Triton need it.")
    remedy = f"Use a system with glibc {_text(OLDEST_GLIBC)} or newer, or the container."
    return _judge("glibc", f"glibc {_text(version)}", (version < OLDEST_GLIBC, "problem", remedy))


def check_triton(folder: Path | None) -> Finding:
    """Check the Triton in a folder, or the embedded one."""
    try:
        path = (embedded_installation() if folder is None else system_installation(folder)).executable
    except MlclsError as error:
        remedy = "Install mlcls with its extra 'serve', or choose another Triton with --tritonserver."
        return Finding("problem", "Triton", str(error), remedy)
    if folder is None:
        version = EMBEDDED_VERSIONS.get(importlib.metadata.version("nvidia-pytriton"))
        found = f"Triton {_text(version)} at {path}: the embedded one, older than the security fixes of 2025 and 2026"
        remedy = (
            "Keep it on 127.0.0.1, as mlcls serve does; for other addresses use the container (docker-compose.yml)."
        )
        return Finding("note", "Triton", found, remedy)
    # NVIDIA's image has the version in both places
    file = folder / "TRITON_VERSION"
    version = parse_version(file.read_text("utf-8") if file.is_file() else os.environ.get("TRITON_SERVER_VERSION", ""))
    found = f"Triton {_text(version)} at {path}"
    if version is None:
        return Finding("warning", "Triton", found, "Start it and check its version: mlcls doctor --url HOST:PORT.")
    return _judge_version("Triton", found, version)


def check_processor(cores: int, flags: Collection[str], models: Sequence[ImportedModel]) -> Iterator[Finding]:
    """Check the processor's flags, which are empty if they are not known."""
    if not flags:
        yield Finding("note", "processor", f"{cores} cores, features unknown", "Measure both FP32 and INT8.")
        return
    bf16, int8 = find_bf16_units(flags), find_int8_units(flags)
    found = f"{cores} cores {'with' if bf16 else 'without'} {' or '.join(bf16 or BF16_FLAGS)}"
    in_bf16 = [model.name for model in models if model.settings.of("embedded").engine_precision == "bf16"]
    if in_bf16:
        found += f"; {', '.join(in_bf16)} set engine_precision bf16 for the target embedded"
        if bf16:
            remedy = "Its scores differ from PaddleX's. Compare them: mlcls verify MODEL --candidate openvino-bf16."
            yield Finding("note", "processor", found, remedy)
        else:
            yield Finding("problem", "processor", found, "Set f32 in serving.json and run: mlcls repository.")
    else:
        yield Finding("ok", "processor", f"{found}; no model computes in bf16")
    if int8:
        yield Finding("ok", "INT8", f"the processor has {', '.join(int8)}")
        return
    is_built = any(INT8_FILE in model.weights_bytes for model in models)
    found = f"the processor has none of {', '.join(INT8_FLAGS)}; INT8 may be no faster than FP32"
    yield Finding("warning" if is_built else "note", "INT8", found, "Measure both before you serve --target int8.")


def check_gpu(machine: Machine, models: Sequence[ImportedModel]) -> Iterator[Finding]:
    """Check the GPUs and the plans that are built for them."""
    plans = [model for model in models if PLAN_FILE in model.weights_bytes]
    if machine.gpus:
        found = f"{', '.join(map(str, machine.gpus))}; TensorRT {machine.tensorrt or 'not installed'}"
        remedy = "" if plans else "Use it: mlcls build-engine MODEL --engine tensorrt, in the serving image."
        yield Finding("ok" if plans else "note", "GPU", found, remedy)
    else:
        yield Finding("note", "GPU", "the NVIDIA driver reports none: --target gpu cannot be served here")
    level: Level = "problem" if machine.gpus else "warning"
    for model in plans:
        for fault in model.plan_faults:
            yield Finding(level, "plan", fault, "Build it on the GPU that serves: mlcls build-engine.")
        if not model.plan_faults:
            yield Finding("ok", "plan", f"the plan of {model.name} fits this machine")


def check_repository(root: Path, models: Sequence[ImportedModel]) -> Iterator[Finding]:
    """Check the files of all imported models."""
    topic = "repository"
    if not root.is_dir():
        remedy = "Choose it with --repository, or import a model: mlcls import MODEL."
        yield Finding("warning", topic, "the folder does not exist", remedy)
    elif not models:
        yield Finding("note", topic, f"{root} has no imported model", "Import one: mlcls import MODEL.")
    for model in models:
        for fault in model.faults:
            yield Finding("problem", topic, fault, f"{model.name} cannot be served until this is fixed.")
        if not model.faults:
            files = ", ".join(f"{name} {_size(size)}" for name, size in sorted(model.weights_bytes.items()))
            yield Finding("ok", topic, f"{model.name}: {files}; they match the manifest")


def check_leftovers(root: Path) -> Iterator[Finding]:
    """Look for what killed commands left in a repository; a folder that a living process holds is not among it."""
    repository = Repository(root)
    if not root.is_dir() or is_locked(root):  # a command is at work
        return
    for folder in sorted(root.glob(f"{STAGING_PREFIX}*")):
        with contextlib.suppress(OSError):  # it has just gone, or is another user's and nobody may look
            if not is_locked(folder):
                size = sum(path.lstat().st_size for path in folder.rglob("*"))
                is_held = (folder / LOCK_NAME).exists()
                remedy = "The next import, publish or build of its user removes it." if is_held else "Remove it."
                yield Finding("warning", "repository", f"{folder}, {_size(size)}, was left by a killed command", remedy)
    folders = [path for name in repository.models() for found in repository.leftovers(name).values() for path in found]
    if left := [path.relative_to(root).as_posix() for path in (*folders, *repository.unfinished_files())]:
        found = f"a killed command left {', '.join(left)}"
        yield Finding("warning", "repository", found, "Remove them: mlcls repository.")


def check_disk(free_bytes: int, models: Sequence[ImportedModel]) -> Finding:
    """Check the free space on the repository's disk."""
    largest = max((sum(model.weights_bytes.values()) for model in models), default=0)
    wanted = max(_DISK_IN_MODELS * largest, _MIN_DISK_BYTES)
    return _judge(
        "disk",
        f"{_size(free_bytes)} free, a new version or engine may take {_size(wanted)}",
        (free_bytes < _MIN_DISK_BYTES, "problem", "Free some space."),
        (free_bytes < wanted, "warning", "Free some space before you import, build or publish."),
    )


def check_tuning(cores: int, models: Sequence[ImportedModel]) -> Iterator[Finding]:
    """Check that settings were tuned with as many cores as there are."""
    for model in models:
        for target, record in model.settings.tuned.items():
            mismatch = model.settings.describe_mismatch(target, cores)
            found = mismatch or f"the settings of the target {target} were tuned for {record.cores} cores"
            remedy = f"Measure here: mlcls tune {model.name} --target {target}, or --reset." if mismatch else ""
            yield Finding("warning" if mismatch else "ok", "tuning", f"{model.name}: {found}", remedy)


def check_memory(
    available_bytes: int, models: Sequence[ImportedModel], targets: Sequence[Target], cores: int
) -> Iterator[Finding]:
    """Compare the available memory with what all models need in one server, for each target that has engines."""
    for target in targets:
        needs = [memory for model in models if (memory := model.memory(target, cores)) is not None]
        if not needs:
            continue
        at_start, at_most = (sum(sizes) for sizes in zip(*needs, strict=True))
        found = f"{_size(available_bytes)} available, all models on the target {target} need about {_size(at_start)}"
        if at_most > at_start:
            found += f" after the start, {_size(at_most)} after their largest batches, whose memory is kept"
        is_full, may_be_full = at_start > available_bytes, at_most > 0.7 * available_bytes
        remedy = "Serve fewer of them at once, or"
        yield _judge(
            "memory",
            found,
            (is_full, "problem", f"{remedy} on a larger machine."),
            (may_be_full, "warning", f"{remedy} watch the memory under load."),
        )


def check_shared_memory(size_bytes: int | None, models: Sequence[ImportedModel]) -> Finding:
    """Compare the size of /dev/shm, None if there is none, with what all models need."""
    topic = "shared memory"
    if size_bytes is None:
        return Finding("problem", topic, "no /dev/shm", "Mount it: Triton's Python backends pass tensors through it.")
    needed = sum(model.shared_memory_bytes for model in models)
    found = f"/dev/shm has {_size(size_bytes)}, the imported models need {_size(needed)} at full load"
    remedy = "Give it more: shm_size in docker-compose.yml (MLCLS_SHM_SIZE)."
    return _judge(topic, found, (size_bytes < needed, "problem", remedy))


def check_queues(available_bytes: int, models: Sequence[ImportedModel]) -> Finding:
    """Compare the available memory with what full queues hold, each request up to a full batch."""
    single = sum(model.queue_bytes for model in models)
    worst = single * MAX_BATCH_SIZE
    sizes = sorted({model.settings.queue.max_queue_size for model in models})
    found = (
        f"up to {' or '.join(map(str, sizes))} requests wait before each of {len(STEP_SUFFIXES)} steps: "
        f"{_size(single)} if each has one image, {_size(worst)} if each has {MAX_BATCH_SIZE}"
    )
    remedy = "Set a smaller queue.max_queue_size in serving.json, or limit requests with the gateway."
    is_full, may_be_full = single > available_bytes, worst > available_bytes
    return _judge("queues", found, (is_full, "warning", remedy), (may_be_full, "note", remedy))


def check_server(url: str) -> Iterator[Finding]:
    """Ask a server for its version, and without a key for everything that should need one.

    Raises:
        ServerError: The address is invalid.
    """
    api = HttpApi(url, allow_proxy=True)
    version = None
    try:
        version = parse_version(str(json.loads(api.request("/v2", _TIMEOUT_S))["version"]))
    except NoAnswerError as error:
        found = f"{api.url}: no answer over HTTP ({error}); is this its HTTP port?"
        yield Finding("problem", "server", found, "Start it, or give the HTTP port of a running server.")
        return
    except (HttpStatusError, ValueError, KeyError, TypeError):
        pass
    if version is None:
        yield Finding("warning", "server", f"{api.url} does not report its version", "Is it a tritonserver?")
    elif api.is_local and version[:2] < SECURITY_FLOOR:
        found = f"Triton {_text(version)} at {api.url}, older than {_text(SECURITY_FLOOR)} (26.07)"
        yield Finding("note", "server", found, "Keep it reachable from this machine only.")
    else:
        yield _judge_version("server", f"Triton {_text(version)} at {api.url}", version)
    open_apis = [name for name in _API_REQUESTS if _is_open(api, name)]
    exposed = [name for name in open_apis if name != "statistics"]
    if exposed:
        found = f"{api.url} answers without a key: {', '.join(exposed)}"
        remedy = "Close them: --http-restricted-api and --grpc-restricted-protocol, as mlcls serve does."
        yield Finding("problem", "open APIs", found, remedy)
    if "statistics" in open_apis:
        remedy = "Close them if others can reach the server, as the containers do."
        found = f"{api.url} shows its statistics without a key"
        yield Finding("note" if api.is_local else "warning", "open APIs", found, remedy)
    if not open_apis:
        yield Finding("ok", "open APIs", f"{api.url} requires a key")


def parse_version(text: str) -> Version | None:
    """Return the numbers at the start of a version; None if there are none."""
    match = re.match(r"\s*v?(\d+(?:\.\d+)*)", text)
    return tuple(map(int, match[1].split("."))) if match else None


def _is_open(api: HttpApi, name: str) -> bool:
    path, data = _API_REQUESTS[name]
    try:
        api.request(path, _TIMEOUT_S, data)
    except (HttpStatusError, NoAnswerError):
        return False
    return True


def _judge(topic: str, found: str, *rules: tuple[bool, Level, str]) -> Finding:
    """Return a finding with level and remedy of the first rule that applies; `ok` if none does."""
    level, remedy = next(((level, remedy) for applies, level, remedy in rules if applies), ("ok", ""))
    return Finding(level, topic, found, remedy)


def _judge_version(topic: str, found: str, version: Version) -> Finding:
    if version[:2] >= SECURITY_FLOOR:
        return Finding("ok", topic, found)
    known = f"{found}, older than {_text(SECURITY_FLOOR)} (26.07), has known vulnerabilities"
    return Finding("problem", topic, known, "Use the image pinned in .env.")


def _text(version: Version | None) -> str:
    return ".".join(map(str, version)) if version else "of an unknown version"


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.0f} MB"
