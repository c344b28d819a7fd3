"""Check whether a TensorRT plan fits the machine, before Triton loads it.

A plan runs only with the TensorRT version and on the GPU architecture that it was built with ("Version Compatibility"
and "Hardware Compatibility", docs.nvidia.com/deeplearning/tensorrt). Triton's own error names neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from mlcls.base.machine import Gpu, Machine
from mlcls.engines.tensorrt.library import parse_version
from mlcls.errors import RepositoryError
from mlcls.repository.manifest import EngineRecord, FileRecord, Manifest

# Keys of `EngineRecord.built_for`.
LIBRARY: Final = "library"
LIBRARY_VERSION: Final = "version"
GPU: Final = "gpu"
COMPUTE_CAPABILITY: Final = "compute_capability"

_REMEDY: Final = "Build it in the image that serves: mlcls build-engine MODEL --engine tensorrt."


def describe_target(library: str, version: str, gpu: Gpu | None, compute_capability: str = "") -> dict[str, str]:
    """Return the `built_for` of an engine's record.

    Args:
        library: `tensorrt` or `tensorrt_rtx`.
        version: The library's version.
        gpu: The GPU that it was built on; None if none was needed.
        compute_capability: The architecture that was named, if there was no GPU.
    """
    return {
        LIBRARY: library,
        LIBRARY_VERSION: version,
        GPU: gpu.name if gpu else "",
        COMPUTE_CAPABILITY: gpu.compute_capability if gpu else compute_capability,
    }


def check_plan(folder: Path, file: str, machine: Machine) -> None:
    """Check that a plan fits the machine and its folder.

    Args:
        folder: The engine's version folder.
        file: The plan's name in it.
        machine: The machine that will run it.

    Raises:
        RepositoryError: The plan was built for another library, TensorRT version or GPU architecture, or from other
            files than the folder's; or the machine has no TensorRT or no GPU.
    """
    manifest = Manifest.read(folder)
    record = manifest.engine(file)
    path = folder / file
    built_for = record.built_for
    library = built_for.get(LIBRARY, "")
    if library != "tensorrt":
        raise RepositoryError(
            f"{path}: expected a plan of tensorrt, which Triton's tensorrt backend runs, got an engine of "
            f"{library or 'an unnamed library'}. {_REMEDY}"
        )
    _check_sources(path, record, manifest.files, {engine.file: engine for engine in manifest.engines})
    if not machine.gpus:
        raise RepositoryError(
            f"{path} needs an NVIDIA GPU of compute capability {built_for.get(COMPUTE_CAPABILITY)}, but the driver "
            f"shows none here (in a container: --gpus all). Serve without one: --target cpu or --target embedded."
        )
    if machine.tensorrt is None:
        raise RepositoryError(
            f"{path} needs TensorRT {built_for.get(LIBRARY_VERSION)}, but libnvinfer is not installed here. Serve in "
            f"NVIDIA's Triton image."
        )
    wanted, found = parse_version(built_for.get(LIBRARY_VERSION, "")), parse_version(machine.tensorrt)
    known = min(len(wanted), len(found), 4)
    if known < 3 or wanted[:known] != found[:known]:
        raise RepositoryError(
            f"{path} was built with TensorRT {built_for.get(LIBRARY_VERSION) or 'of an unknown version'}, but here is "
            f"TensorRT {machine.tensorrt}; a plan runs on its own version only. {_REMEDY}"
        )
    misfits = [gpu for gpu in machine.gpus if gpu.compute_capability != built_for.get(COMPUTE_CAPABILITY)]
    if misfits:  # KIND_GPU puts an instance on every GPU
        raise RepositoryError(
            f"{path} was built for {Gpu(built_for.get(GPU, 'a GPU'), built_for.get(COMPUTE_CAPABILITY, 'unknown'))}, "
            f"but here is {', '.join(map(str, misfits))}; a plan runs on its own architecture only. {_REMEDY}"
        )


def _check_sources(
    path: Path, record: EngineRecord, files: Mapping[str, FileRecord], engines: Mapping[str, EngineRecord]
) -> None:
    """Check that the folder's ONNX files are those that the plan comes from, back to the FP32 graph."""
    if not record.made_from:
        raise RepositoryError(f"{path}: its manifest does not say what it was made from. {_REMEDY}")
    for name, digest in record.made_from.items():
        if name not in files:
            raise RepositoryError(f"{path} was made from {name}, which is not in its folder. {_REMEDY}")
        if files[name].sha256 != digest:
            raise RepositoryError(
                f"{path} was made from another {name} than the one beside it (SHA-256 {digest[:12]}..., not "
                f"{files[name].sha256[:12]}...). {_REMEDY}"
            )
        source = engines.get(name)
        if source is not None and set(source.made_from) <= set(files):  # the FP32 graph comes from Paddle's files
            _check_sources(path, source, files, engines)
