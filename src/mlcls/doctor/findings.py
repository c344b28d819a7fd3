"""Findings of `mlcls doctor`, which follow from `MachineFacts` alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Literal

from mlcls.base.machine import BF16_FLAGS, INT8_FLAGS, find_bf16_units, find_int8_units
from mlcls.doctor.facts import MachineFacts, RepositoryFacts, ServedModelFacts, Version
from mlcls.repository.names import INT8_FILE, PLAN_FILE, STEP_SUFFIXES
from mlcls.repository.settings import MAX_BATCH_SIZE, TARGETS

# Size of a typical encoded image, to estimate the memory for many.
TYPICAL_IMAGE_BYTES: Final = 1 << 20

# Memory of a served model, measured with all six in one server: 976 MB of FP32 weights, 4.1 GB in all processes.
MEMORY_PER_WEIGHT: Final = 3.5
MEMORY_PER_MODEL_BYTES: Final = 120_000_000


def needed_memory_bytes(model: ServedModelFacts) -> int:
    """Return the memory that all processes of a model need; each engine instance has its own weights."""
    engine = int(MEMORY_PER_WEIGHT * max(model.weights_bytes.values(), default=0))
    return engine * _most_instances(model)[1] + MEMORY_PER_MODEL_BYTES


def needed_shared_memory_bytes(model: ServedModelFacts) -> int:
    """Return the shared memory for full batches in all processes at once: encoded images and pixels."""
    preprocess, engine = _most_instances(model)
    batch = model.settings.max_batch_size
    return preprocess * batch * (TYPICAL_IMAGE_BYTES + model.pixels_bytes) + engine * batch * model.pixels_bytes


def _most_instances(model: ServedModelFacts) -> tuple[int, int]:
    """Return the instances of preprocess and of the engine, on the target that has the most of each."""
    settings = [model.settings.of(target) for target in TARGETS]
    return max(each.preprocess_instances for each in settings), max(each.engine_instances for each in settings)


Level = Literal["ok", "note", "warning", "problem"]

# Triton before 2.71.0 (container 26.07) lacks fixes from NVIDIA's security bulletins of 2025 and 2026 (5687 to 5875).
SECURITY_FLOOR: Final[Version] = (2, 71)

OLDEST_PYTHON: Final[Version] = (3, 10)
NEWEST_PYTHON: Final[Version] = (3, 12)
# The embedded tritonserver is linked with it.
OLDEST_GLIBC: Final[Version] = (2, 35)

# Free disk that a new version or engine may need, in sizes of a model: it is written beside the one that is served.
DISK_IN_MODELS: Final = 2
MIN_DISK_BYTES: Final = 200_000_000


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that was examined.

    Attributes:
        level: `problem`: something will not work, or is open to others. `warning`: it may not. `note`: worth knowing.
        topic: What was examined, in a word or two.
        found: What was found, one line.
        remedy: What to do, one line; empty if there is nothing to do.
    """

    level: Level
    topic: str
    found: str
    remedy: str = ""


def examine(facts: MachineFacts) -> list[Finding]:
    """Return all findings, in the order of the checks."""
    return [finding for check in _CHECKS for finding in check(facts)]


def _check_python(facts: MachineFacts) -> Iterator[Finding]:
    found = f"Python {_text(facts.python)}"
    if OLDEST_PYTHON <= facts.python[:2] <= NEWEST_PYTHON:
        yield Finding("ok", "Python", found)
    else:
        wanted = f"{_text(OLDEST_PYTHON)} to {_text(NEWEST_PYTHON)}"
        yield Finding("problem", "Python", found, f"Run mlcls with Python {wanted}, which Triton has stubs for.")
    if facts.glibc is None:
        yield Finding("problem", "glibc", "no glibc", "Use Linux with glibc: the wheels and Triton need it.")
    elif facts.glibc < OLDEST_GLIBC:
        remedy = f"Use a system with glibc {_text(OLDEST_GLIBC)} or newer, or the container."
        yield Finding("problem", "glibc", f"glibc {_text(facts.glibc)}", remedy)
    else:
        yield Finding("ok", "glibc", f"glibc {_text(facts.glibc)}")


def _check_triton(facts: MachineFacts) -> Iterator[Finding]:
    triton = facts.triton
    if triton is None:
        remedy = "Install mlcls with its extra 'serve', or choose another Triton with --tritonserver."
        yield Finding("problem", "Triton", facts.triton_fault or "no tritonserver", remedy)
        return
    found = f"Triton {_text(triton.version)} at {triton.path}"
    if triton.is_embedded:
        yield Finding(
            "note",
            "Triton",
            f"{found}: the embedded one, older than the security fixes of 2025 and 2026",
            "Keep it on 127.0.0.1, as mlcls serve does; for other addresses use the container (docker-compose.yml).",
        )
    elif triton.version is None:
        yield Finding("warning", "Triton", found, "Start it and check its version: mlcls doctor --url HOST:PORT.")
    else:
        yield _judge_version(found, "Triton", triton.version)


def _judge_version(found: str, topic: str, version: Version) -> Finding:
    if version[:2] >= SECURITY_FLOOR:
        return Finding("ok", topic, found)
    return Finding(
        "problem",
        topic,
        f"{found}, older than {_text(SECURITY_FLOOR)} (26.07), has known vulnerabilities",
        "Use the image pinned in .env.",
    )


def _check_shared_memory(facts: MachineFacts) -> Iterator[Finding]:
    topic = "shared memory"
    if facts.shared_memory_bytes is None:
        yield Finding("problem", topic, "no /dev/shm", "Mount it: Triton's Python backends pass tensors through it.")
        return
    needed = sum(map(needed_shared_memory_bytes, _models(facts)))
    found = f"/dev/shm has {_size(facts.shared_memory_bytes)}, the imported models need {_size(needed)} at full load"
    if facts.shared_memory_bytes < needed:
        yield Finding("problem", topic, found, "Give it more: shm_size in docker-compose.yml (MLCLS_SHM_SIZE).")
    else:
        yield Finding("ok", topic, found)


def _check_queues(facts: MachineFacts) -> Iterator[Finding]:
    """Compare the memory with what full queues hold, each request up to a full batch."""
    models = _models(facts)
    if not models:
        return
    single = sum(model.settings.queue.max_queue_size * (TYPICAL_IMAGE_BYTES + model.pixels_bytes) for model in models)
    worst = single * MAX_BATCH_SIZE
    sizes = sorted({model.settings.queue.max_queue_size for model in models})
    found = (
        f"up to {' or '.join(map(str, sizes))} requests wait before each of {len(STEP_SUFFIXES)} steps: "
        f"{_size(single)} if each has one image, {_size(worst)} if each has {MAX_BATCH_SIZE}"
    )
    if worst <= facts.memory_bytes:
        yield Finding("ok", "queues", found)
    else:
        remedy = "Set a smaller queue.max_queue_size in serving.json, or limit requests with the gateway."
        yield Finding("warning" if single > facts.memory_bytes else "note", "queues", found, remedy)


def _check_memory(facts: MachineFacts) -> Iterator[Finding]:
    models = _models(facts)
    if not models:
        return
    needed = sum(map(needed_memory_bytes, models))
    found = f"{_size(facts.memory_bytes)} available, all imported models in one server need about {_size(needed)}"
    if needed > facts.memory_bytes:
        yield Finding("problem", "memory", found, "Serve fewer of them at once, or on a larger machine.")
    elif needed > 0.7 * facts.memory_bytes:
        yield Finding("warning", "memory", found, "Serve fewer of them at once, or watch the memory under load.")
    else:
        yield Finding("ok", "memory", found)


def _check_processor(facts: MachineFacts) -> Iterator[Finding]:
    if not facts.cpu_flags:
        yield Finding("note", "processor", f"{facts.cores} cores, features unknown", "Measure both FP32 and INT8.")
        return
    bf16, int8 = find_bf16_units(facts.cpu_flags), find_int8_units(facts.cpu_flags)
    if bf16:
        yield Finding(
            "note",
            "processor",
            f"{facts.cores} cores with {', '.join(bf16)}: the target cpu may compute in bf16, with different scores",
            "Check its scores: mlcls verify MODEL --candidate served=HOST:PORT. The other targets are pinned to f32.",
        )
    else:
        yield Finding("ok", "processor", f"{facts.cores} cores without {' or '.join(BF16_FLAGS)}: no bf16 arithmetic")
    if int8:
        yield Finding("ok", "INT8", f"the processor has {', '.join(int8)}")
        return
    built = [model.name for model in _models(facts) if INT8_FILE in model.weights_bytes]
    level: Level = "warning" if built else "note"
    found = f"the processor has none of {', '.join(INT8_FLAGS)}; INT8 may be no faster than FP32"
    yield Finding(level, "INT8", found, "Measure both before you serve --target int8.")


def _check_tuning(facts: MachineFacts) -> Iterator[Finding]:
    for model in _models(facts):
        for target, record in model.settings.tuned.items():
            mismatch = model.settings.describe_mismatch(target, facts.cores)
            found = mismatch or f"the settings of the target {target} were tuned for {record.cores} cores"
            remedy = f"Measure here: mlcls tune {model.name} --target {target}, or --reset." if mismatch else ""
            yield Finding("warning" if mismatch else "ok", "tuning", f"{model.name}: {found}", remedy)


def _check_gpu(facts: MachineFacts) -> Iterator[Finding]:
    plans = [model for model in _models(facts) if PLAN_FILE in model.weights_bytes]
    if facts.gpus:
        found = f"{', '.join(map(str, facts.gpus))}; TensorRT {facts.tensorrt or 'not installed'}"
        remedy = "" if plans else "Use it: mlcls build-engine MODEL --engine tensorrt, in the serving image."
        yield Finding("ok" if plans else "note", "GPU", found, remedy)
    else:
        yield Finding("note", "GPU", "the NVIDIA driver reports none: --target gpu cannot be served here")
    for model in plans:
        if model.plan_fault is None:
            yield Finding("ok", "plan", f"the plan of {model.name} fits this machine")
        else:
            level: Level = "problem" if facts.gpus else "warning"
            yield Finding(level, "plan", model.plan_fault, "Build it on the GPU that serves: mlcls build-engine.")


def _check_repository(facts: MachineFacts) -> Iterator[Finding]:
    topic = "repository"
    repository = facts.repository
    if repository is None:
        remedy = "Choose it with --repository, or import a model: mlcls import MODEL."
        yield Finding("warning", topic, "the folder does not exist", remedy)
        return
    if not repository.models:
        yield Finding("note", topic, f"{repository.path} has no imported model", "Import one: mlcls import MODEL.")
    for model in repository.models:
        for fault in model.faults:
            yield Finding("problem", topic, fault, f"{model.name} cannot be served until this is fixed.")
        if not model.faults:
            files = ", ".join(f"{name} {_size(size)}" for name, size in sorted(model.weights_bytes.items()))
            yield Finding("ok", topic, f"{model.name}: {files}; they match the manifest")
    yield _check_disk(repository)


def _check_disk(repository: RepositoryFacts) -> Finding:
    largest = max((sum(model.weights_bytes.values()) for model in repository.models), default=0)
    wanted = max(DISK_IN_MODELS * largest, MIN_DISK_BYTES)
    found = f"{_size(repository.disk_free_bytes)} free, a new version or engine may take {_size(wanted)}"
    if repository.disk_free_bytes < MIN_DISK_BYTES:
        return Finding("problem", "disk", found, "Free some space.")
    if repository.disk_free_bytes < wanted:
        return Finding("warning", "disk", found, "Free some space before you import, build or publish.")
    return Finding("ok", "disk", found)


def _check_server(facts: MachineFacts) -> Iterator[Finding]:
    server = facts.server
    if server is None:
        return
    if server.fault is not None:
        yield Finding(
            "problem", "server", f"{server.url}: {server.fault}", "Start it, or give the HTTP port of a running server."
        )
        return
    if server.version is None:
        yield Finding("warning", "server", f"{server.url} does not report its version", "Is it a tritonserver?")
    elif server.is_local and server.version[:2] < SECURITY_FLOOR:
        yield Finding(
            "note",
            "server",
            f"Triton {_text(server.version)} at {server.url}, older than {_text(SECURITY_FLOOR)} (26.07)",
            "Keep it reachable from this machine only.",
        )
    else:
        yield _judge_version(f"Triton {_text(server.version)} at {server.url}", "server", server.version)
    exposed = [api for api in server.open_apis if api != "statistics"]
    if exposed:
        yield Finding(
            "problem",
            "open APIs",
            f"{server.url} answers without a key: {', '.join(exposed)}",
            "Close them: --http-restricted-api and --grpc-restricted-protocol, as mlcls serve does.",
        )
    if "statistics" in server.open_apis:
        yield Finding(
            "note" if server.is_local else "warning",
            "open APIs",
            f"{server.url} shows its statistics without a key",
            "Close them if others can reach the server, as the containers do.",
        )
    if not server.open_apis:
        yield Finding("ok", "open APIs", f"{server.url} requires a key")


def _models(facts: MachineFacts) -> Sequence[ServedModelFacts]:
    return facts.repository.models if facts.repository else ()


def _text(version: Version | None) -> str:
    return ".".join(map(str, version)) if version else "of an unknown version"


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.0f} MB"


_CHECKS: Final[tuple[Callable[[MachineFacts], Iterator[Finding]], ...]] = (
    _check_python,
    _check_triton,
    _check_processor,
    _check_gpu,
    _check_repository,
    _check_tuning,
    _check_memory,
    _check_shared_memory,
    _check_queues,
    _check_server,
)
