"""What the machine has: the C interfaces are read right, and their absence is no error."""

from __future__ import annotations

import ctypes
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlcls.base.machine import Gpu, Machine, read_gpus, read_machine, read_tensorrt_version


class FakeCuda:
    """libcuda with two GPUs; `broken` names the function that fails, as all after it would."""

    GPUS = ((b"Tesla T4", 7, 5), (b"NVIDIA A10", 8, 6))

    def __init__(self, broken: str = "") -> None:
        self._broken = broken

    def cuInit(self, flags: int) -> int:  # noqa: N802 - names of the driver's interface
        return self._status("cuInit", flags == 0)

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = len(self.GPUS)
        return self._status("cuDeviceGetCount")

    def cuDeviceGet(self, device: Any, index: int) -> int:  # noqa: N802
        device._obj.value = 100 + index
        return self._status("cuDeviceGet")

    def cuDeviceGetName(self, name: Any, size: int, device: ctypes.c_int) -> int:  # noqa: N802
        name.value = self.GPUS[device.value - 100][0][: size - 1]
        return self._status("cuDeviceGetName")

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: ctypes.c_int) -> int:  # noqa: N802
        value._obj.value = self.GPUS[device.value - 100][{75: 1, 76: 2}[attribute]]
        return self._status("cuDeviceGetAttribute")

    def _status(self, name: str, good: bool = True) -> int:
        return 0 if good and name != self._broken else 999


def loader(**libraries: Any) -> Any:
    def load(name: str) -> Any:
        try:
            return libraries[name.split(".")[0]]
        except KeyError:
            raise OSError(f"{name}: cannot open shared object file") from None

    return load


def test_gpus_are_read_from_the_driver() -> None:
    assert read_gpus(loader(libcuda=FakeCuda())) == (Gpu("Tesla T4", "7.5"), Gpu("NVIDIA A10", "8.6"))
    assert str(Gpu("Tesla T4", "7.5")) == "Tesla T4 (compute capability 7.5)"


@pytest.mark.parametrize(
    "broken", ["cuInit", "cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetName", "cuDeviceGetAttribute"]
)
def test_a_driver_that_fails_shows_no_gpu(broken: str) -> None:
    assert read_gpus(loader(libcuda=FakeCuda(broken))) == ()


def test_nothing_installed() -> None:
    assert read_machine(loader()) == Machine((), None)


def test_the_version_comes_from_the_library_itself() -> None:
    import tensorrt_rtx
    import tensorrt_rtx_libs

    path = next(Path(tensorrt_rtx_libs.__file__).parent.glob("libtensorrt_rtx.so*"))
    found = read_tensorrt_version(loader(libnvinfer=ctypes.CDLL(str(path))))
    assert found == tensorrt_rtx.__version__


def test_the_version_of_a_library_without_single_numbers() -> None:
    assert read_tensorrt_version(loader(libnvinfer=SimpleNamespace(getInferLibVersion=lambda: 101302))) == "10.13.2"
