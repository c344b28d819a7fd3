"""What this machine has to run a TensorRT plan: its GPUs by the driver, TensorRT's version by its library.

Both are asked through their C interface, so that nothing beside the driver and the library needs to be installed.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import dataclasses
from collections.abc import Callable
from typing import Any, Final

#: `CUdevice_attribute` of cuda.h.
_COMPUTE_CAPABILITY_MAJOR: Final = 75
_COMPUTE_CAPABILITY_MINOR: Final = 76

_NAME_BYTES: Final = 256

#: Names of TensorRT's library, newest first; Triton's image has one of them.
_TENSORRT_LIBRARIES: Final = ("libnvinfer.so.12", "libnvinfer.so.11", "libnvinfer.so.10", "libnvinfer.so")

LoadLibrary = Callable[[str], Any]


@dataclasses.dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        name: The driver's name of it, `Tesla T4`.
        compute_capability: `7.5`.
    """

    name: str
    compute_capability: str

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.compute_capability})"


@dataclasses.dataclass(frozen=True)
class Machine:
    """What a machine has to run TensorRT plans.

    Attributes:
        gpus: Its GPUs in CUDA's order.
        tensorrt: Version of its TensorRT library, `10.13.2.6`; None where there is none.
    """

    gpus: tuple[Gpu, ...] = ()
    tensorrt: str | None = None


def read_machine(load_library: LoadLibrary = ctypes.CDLL) -> Machine:
    """Asks the driver and TensorRT's library.

    Args:
        load_library: Opens a shared library by its name, or raises OSError.
    """
    return Machine(read_gpus(load_library), read_tensorrt_version(load_library))


def read_gpus(load_library: LoadLibrary = ctypes.CDLL) -> tuple[Gpu, ...]:
    """The GPUs that the driver lets this process see; none where there is no driver or no GPU."""
    try:
        cuda = load_library("libcuda.so.1")
    except OSError:
        return ()
    if cuda.cuInit(0) != 0:
        return ()
    count = ctypes.c_int()
    if cuda.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return ()
    gpus = []
    for index in range(count.value):
        device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        name = ctypes.create_string_buffer(_NAME_BYTES)
        failed = (
            cuda.cuDeviceGet(ctypes.byref(device), index)
            or cuda.cuDeviceGetName(name, _NAME_BYTES, device)
            or cuda.cuDeviceGetAttribute(ctypes.byref(major), _COMPUTE_CAPABILITY_MAJOR, device)
            or cuda.cuDeviceGetAttribute(ctypes.byref(minor), _COMPUTE_CAPABILITY_MINOR, device)
        )
        if not failed:
            gpus.append(Gpu(name.value.decode(errors="replace"), f"{major.value}.{minor.value}"))
    return tuple(gpus)


def read_tensorrt_version(load_library: LoadLibrary = ctypes.CDLL) -> str | None:
    """Version of the TensorRT library that this process would load; None where there is none."""
    for name in _TENSORRT_LIBRARIES:
        try:
            library = load_library(name)
        except OSError:
            continue
        parts = ("Major", "Minor", "Patch", "Build")
        try:
            return ".".join(str(getattr(library, f"getInferLib{part}Version")()) for part in parts)
        except AttributeError:  # an older library: one number, 101200 for 10.12.0 (NvInferVersion.h)
            number = int(library.getInferLibVersion())
            return f"{number // 10000}.{number // 100 % 100}.{number % 100}"
    return None
