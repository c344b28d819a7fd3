"""This machine: its description for reports, its processor, and its GPUs and TensorRT library, if any.

The driver and TensorRT are called through their C interfaces, so that no Python package of NVIDIA's is needed.
"""

from __future__ import annotations

import ctypes
import dataclasses
import math
import os
import platform
import re
from collections.abc import Collection
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

# Instruction sets with 8-bit dot products, as Linux names them.
INT8_FLAGS: Final = ("avx512_vnni", "avx_vnni", "amx_int8")
# Instruction sets with bf16 products; OpenVINO uses bf16 by default on a processor that has one.
BF16_FLAGS: Final = ("avx512_bf16", "amx_bf16")

_PACKAGES: Final = (
    "mlcls", "nvidia-pytriton", "openvino", "onnxruntime", "paddlepaddle", "opencv-python-headless", "pillow"
)  # fmt: skip

# The root of the file system.
_ROOT: Final = Path("/")
# Files with a container's memory limit and usage: cgroup 2, cgroup 1.
_MEMORY_LIMITS: Final = (
    ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory.current"),
    ("sys/fs/cgroup/memory/memory.limit_in_bytes", "sys/fs/cgroup/memory/memory.usage_in_bytes"),
)

# `CUdevice_attribute` of cuda.h: the compute capability's major and minor number.
_MAJOR: Final = 75
_MINOR: Final = 76
_NAME_BYTES: Final = 256
# Names of TensorRT's library, newest first; Triton's image has one of them.
_TENSORRT_LIBRARIES: Final = ("libnvinfer.so.12", "libnvinfer.so.11", "libnvinfer.so.10", "libnvinfer.so")


@dataclasses.dataclass(frozen=True)
class Gpu:
    """One GPU: the driver's name for it, like `Tesla T4`, and its compute capability, like `7.5`."""

    name: str
    compute_capability: str

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.compute_capability})"


@dataclasses.dataclass(frozen=True)
class Machine:
    """What a machine has to run TensorRT plans: GPUs in CUDA's order, and the version of TensorRT, like `10.13.2.6`."""

    gpus: tuple[Gpu, ...] = ()
    tensorrt: str | None = None


def describe_machine() -> dict[str, str]:
    """Return facts by name: processor, cores, memory, system, Python, packages."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": read_processor(),
        "cores": str(read_cores()),
        "memory": f"{memory_bytes / 2**30:.0f} GiB",
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: _read_version(name) for name in _PACKAGES},
    }


def format_machine(facts: dict[str, str]) -> str:
    """Return the facts in one paragraph."""
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def read_processor() -> str:
    """Return the processor's name as Linux reports it."""
    return _read_cpu_info("model name") or platform.processor() or "unknown processor"


def read_cores() -> int:
    """Return the number of cores that this process may use, at most its container's CPU limit."""
    cores = len(os.sched_getaffinity(0))
    folder = _ROOT / "sys/fs/cgroup"
    try:
        if (folder / "cpu.max").is_file():  # cgroup 2
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        share = int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # no such file, or "max"
        return cores
    return min(cores, max(math.ceil(share), 1)) if share > 0 else cores  # -1: no limit


def read_available_memory() -> int:
    """Return the bytes available to a new process: what the system has, at most what the container's limit leaves."""
    match = re.search(r"^MemAvailable:\s*(\d+)", (_ROOT / "proc/meminfo").read_text("utf-8"), re.MULTILINE)
    available = int(match[1]) * 1024 if match else 0
    for limit, usage in _MEMORY_LIMITS:
        try:
            left = int((_ROOT / limit).read_text()) - int((_ROOT / usage).read_text())
        except (OSError, ValueError):  # not there, or "max"
            continue
        available = min(available, max(left, 0))
    return available


def read_cpu_flags() -> frozenset[str]:
    """Return the flags of the first processor; empty if Linux reports none, as on architectures other than x86."""
    return frozenset(_read_cpu_info("flags").split())


def find_int8_units(flags: Collection[str]) -> tuple[str, ...]:
    """Return those of `INT8_FLAGS` that the processor has."""
    return tuple(flag for flag in INT8_FLAGS if flag in flags)


def find_bf16_units(flags: Collection[str]) -> tuple[str, ...]:
    """Return those of `BF16_FLAGS` that the processor has."""
    return tuple(flag for flag in BF16_FLAGS if flag in flags)


def warn_about_int8(flags: Collection[str]) -> str | None:
    """Return a note for a processor without INT8 instructions, on which INT8 may be no faster; None if it has some."""
    if find_int8_units(flags):
        return None
    return (
        f"Note: this processor has none of {', '.join(INT8_FLAGS)}; INT8 may be no faster than FP32 on it. Measure "
        f"both before you serve it."
    )


def read_machine() -> Machine:
    """Return the GPUs and the version of TensorRT."""
    return Machine(read_gpus(), read_tensorrt_version())


def read_gpus() -> tuple[Gpu, ...]:
    """Return the GPUs that the driver shows this process; empty without a driver or a GPU."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ()
    count = ctypes.c_int()
    if cuda.cuInit(0) != 0 or cuda.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return ()
    gpus = []
    for index in range(count.value):
        device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        name = ctypes.create_string_buffer(_NAME_BYTES)
        failed = (
            cuda.cuDeviceGet(ctypes.byref(device), index)
            or cuda.cuDeviceGetName(name, _NAME_BYTES, device)
            or cuda.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
            or cuda.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
        )
        if not failed:
            gpus.append(Gpu(name.value.decode(errors="replace"), f"{major.value}.{minor.value}"))
    return tuple(gpus)


def read_tensorrt_version() -> str | None:
    """Return the version of the TensorRT library that this process would load; None if there is none."""
    for name in _TENSORRT_LIBRARIES:
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        parts = ("Major", "Minor", "Patch", "Build")
        try:
            return ".".join(str(getattr(library, f"getInferLib{part}Version")()) for part in parts)
        except AttributeError:  # an older library: one number, 101200 for 10.12.0 (NvInferVersion.h)
            number = int(library.getInferLibVersion())
            return f"{number // 10000}.{number // 100 % 100}.{number % 100}"
    return None


def _read_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _read_cpu_info(name: str) -> str:
    """Return what Linux says of the first processor; empty if it says nothing."""
    try:
        lines = (_ROOT / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    facts = (line.partition(":") for line in lines)
    return next((value.strip() for found, colon, value in facts if colon and found.strip() == name), "")
