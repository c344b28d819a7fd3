"""Check whether a TensorRT plan fits the machine, before Triton loads it.

A plan runs only with the TensorRT version and on the GPU architecture that it was built with ("Version Compatibility"
and "Hardware Compatibility", docs.nvidia.com/deeplearning/tensorrt). Triton's own error names neither.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from mlcls.base.machine import Gpu, Machine
from mlcls.engines.tensorrt.library import parse_version
from mlcls.errors import RepositoryError
from mlcls.repository.manifest import EngineRecord, Manifest

_REMEDY: Final = "Build it in the image that serves: mlcls build-engine MODEL --engine tensorrt."


def describe_target(library: str, version: str, gpu: Gpu | None, compute_capability: str = "") -> dict[str, str]:
    """Return the `built_for` of an engine's record: of the GPU that it was built on, or of the named architecture."""
    return {
        "library": library,
        "version": version,
        "gpu": gpu.name if gpu else "",
        "compute_capability": gpu.compute_capability if gpu else compute_capability,
    }


def check_plan(folder: Path, file: str, machine: Machine) -> None:
    """Check that a plan in an engine's version folder fits the folder and the machine that will run it.

    Raises:
        RepositoryError: The plan was built for another library, TensorRT version or GPU architecture, or from other
            files than the folder's; or the machine has no TensorRT or no GPU.
    """
    manifest = Manifest.read(folder)
    record = manifest.engine(file)
    path = folder / file
    library, version, name, capability = (
        record.built_for.get(key, "unknown") for key in ("library", "version", "gpu", "compute_capability")
    )
    if library != "tensorrt":
        raise RepositoryError(
            f"{path}: expected a plan of tensorrt, which Triton's tensorrt backend runs, got an engine of {library}. "
            f"{_REMEDY}"
        )
    _check_sources(path, record, manifest)
    if not machine.gpus:
        raise RepositoryError(
            f"{path} needs an NVIDIA GPU of compute capability {capability}, but the driver shows none here (in a "
            f"container: --gpus all). Serve without one: --target cpu or --target embedded."
        )
    if machine.tensorrt is None:
        raise RepositoryError(
            f"{path} needs TensorRT {version}, but libnvinfer is not installed here. Serve in NVIDIA's Triton image."
        )
    wanted, found = parse_version(version), parse_version(machine.tensorrt)
    known = min(len(wanted), len(found), 4)
    if known < 3 or wanted[:known] != found[:known]:
        raise RepositoryError(
            f"{path} was built with TensorRT {version}, but here is TensorRT {machine.tensorrt}; a plan runs on its "
            f"own version only. {_REMEDY}"
        )
    misfits = [gpu for gpu in machine.gpus if gpu.compute_capability != capability]
    if misfits:  # KIND_GPU puts an instance on every GPU
        raise RepositoryError(
            f"{path} was built for {Gpu(name, capability)}, but here is {', '.join(map(str, misfits))}; a plan runs on "
            f"its own architecture only. {_REMEDY}"
        )


def _check_sources(path: Path, record: EngineRecord, manifest: Manifest) -> None:
    """Check that the folder's ONNX files are those that the plan comes from, back to the FP32 graph."""
    files = manifest.files
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
    for source in manifest.engines:  # the FP32 graph comes from Paddle's files, which are not here
        if source.file in record.made_from and set(source.made_from) <= set(files):
            _check_sources(path, source, manifest)
