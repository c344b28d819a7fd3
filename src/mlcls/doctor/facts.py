"""What `mlcls doctor` examines: facts of this machine, a repository and a running server, as plain values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Final

from mlcls.base.machine import Gpu
from mlcls.repository.settings import DEFAULT_MODEL_SETTINGS, ModelSettings

Version = tuple[int, ...]

# Version of tritonserver by release of the wheel nvidia-pytriton; the program itself does not report it.
EMBEDDED_VERSIONS: Final[Mapping[str, Version]] = {"0.7.0": (2, 51, 0)}


@dataclasses.dataclass(frozen=True)
class TritonFacts:
    """A tritonserver that could be started here.

    Attributes:
        path: The program.
        version: `(2, 75, 0)`; None if unknown.
        is_embedded: Whether it comes from the wheel; `mlcls serve` then binds it to this machine only.
    """

    path: str
    version: Version | None
    is_embedded: bool


@dataclasses.dataclass(frozen=True)
class ServedModelFacts:
    """One imported model of a repository.

    Attributes:
        name: Name of its ensemble.
        pixels_bytes: Size of one image between two steps.
        weights_bytes: Size of each model file of the active version's engine, by name.
        faults: What is wrong with its folders or configurations, one text each.
        plan_fault: Why its TensorRT plan does not run here; None if it does, or if there is none.
        settings: How it is served on each target.
    """

    name: str
    pixels_bytes: int
    weights_bytes: Mapping[str, int]
    faults: tuple[str, ...] = ()
    plan_fault: str | None = None
    settings: ModelSettings = DEFAULT_MODEL_SETTINGS


@dataclasses.dataclass(frozen=True)
class RepositoryFacts:
    """A model repository.

    Attributes:
        path: Its folder.
        models: The imported models.
        disk_free_bytes: Free space on its disk.
    """

    path: str
    models: tuple[ServedModelFacts, ...]
    disk_free_bytes: int


@dataclasses.dataclass(frozen=True)
class ServerFacts:
    """A running tritonserver, asked without a key.

    Attributes:
        url: URL of its HTTP API.
        is_local: Whether the address is of this machine only.
        version: The version it reports; None if it reports none.
        open_apis: APIs that answered but should be closed.
        fault: Why it could not be asked; None if it answered.
    """

    url: str
    is_local: bool
    version: Version | None = None
    open_apis: tuple[str, ...] = ()
    fault: str | None = None


@dataclasses.dataclass(frozen=True)
class MachineFacts:
    """Everything that the findings follow from.

    Attributes:
        python: Version of the running Python.
        glibc: Version of glibc; None with another C library.
        cores: Processor cores that this process may use.
        memory_bytes: Available memory: what is free, or what the container's limit leaves.
        shared_memory_bytes: Size of /dev/shm; None if there is none.
        cpu_flags: Flags of the processor; empty if unknown.
        gpus: GPUs that the driver reports.
        tensorrt: Version of TensorRT's library; None if there is none.
        triton: The tritonserver; None if there is none.
        triton_fault: Why there is none.
        repository: The model repository; None if its folder does not exist.
        server: The running server; None if none was named.
    """

    python: Version
    glibc: Version | None
    cores: int
    memory_bytes: int
    shared_memory_bytes: int | None
    cpu_flags: frozenset[str]
    gpus: tuple[Gpu, ...] = ()
    tensorrt: str | None = None
    triton: TritonFacts | None = None
    triton_fault: str | None = None
    repository: RepositoryFacts | None = None
    server: ServerFacts | None = None
