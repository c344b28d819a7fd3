"""What `mlcls doctor` looks at: facts of this machine, of a repository and of a running server, as plain values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Final

from mlcls.base.machine import Gpu
from mlcls.repository.settings import DEFAULT_MODEL_SETTINGS, ModelSettings

Version = tuple[int, ...]

# Version of the tritonserver in a release of the wheel nvidia-pytriton; the program itself does not tell.
EMBEDDED_VERSIONS: Final[Mapping[str, Version]] = {"0.7.0": (2, 51, 0)}


@dataclasses.dataclass(frozen=True)
class TritonFacts:
    """A tritonserver that could be started here.

    Attributes:
        path: Its program.
        version: `(2, 75, 0)`; None where nothing tells.
        is_embedded: Whether it is the one of the wheel, which `mlcls serve` binds to this machine only.
    """

    path: str
    version: Version | None
    is_embedded: bool


@dataclasses.dataclass(frozen=True)
class ServedModelFacts:
    """One imported model of a repository.

    Attributes:
        name: Name of its ensemble.
        pixels_bytes: One image between two steps.
        weights_bytes: Size of each model file of the active version's engine, by name.
        faults: What is wrong with its folders or configurations, in words.
        plan_fault: Why its TensorRT plan does not run here; None where it does, or where there is none.
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
        disk_free_bytes: Free space of its disk.
    """

    path: str
    models: tuple[ServedModelFacts, ...]
    disk_free_bytes: int


@dataclasses.dataclass(frozen=True)
class ServerFacts:
    """A running tritonserver, asked without a key.

    Attributes:
        url: Of its HTTP API.
        is_local: Whether the address is of this machine only.
        version: What it says about itself; None where it did not answer.
        open_apis: Those of the APIs to be closed that answered.
        fault: Why nothing could be learned; None where it answered.
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
        cores: Processors that this process may use.
        memory_bytes: Memory that is available: free, or what the container's limit leaves.
        shared_memory_bytes: Size of /dev/shm; None where there is none.
        cpu_flags: Flags of the processor; empty where they are not known.
        gpus: GPUs that the driver shows.
        tensorrt: Version of TensorRT's library; None where there is none.
        triton: The tritonserver; None where there is none.
        triton_fault: Why there is none.
        repository: The model repository; None where its folder does not exist.
        server: A running server; None where none was named.
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
