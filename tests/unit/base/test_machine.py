"""What the machine has: files of Linux and C interfaces are read right, and their absence is no error."""

from __future__ import annotations

import ctypes
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlcls.base import machine
from mlcls.base.machine import Gpu, Machine, read_gpus, read_machine, read_tensorrt_version

CPU_INFO = """processor\t: 0
model name\t: Some processor
flags\t\t: fpu sse2 avx2 {extra}

processor\t: 1
flags\t\t: fpu
"""


def write_files(folder: Path, texts: dict[str, str]) -> None:
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("text", "name", "flags"),
    [
        (CPU_INFO.format(extra="avx512_vnni amx_bf16"), "Some processor", "fpu sse2 avx2 avx512_vnni amx_bf16"),
        ("Features\t: asimd bf16\n", None, ""),
        (None, None, ""),
    ],
)
def test_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, name: str | None, flags: str
) -> None:
    if text is not None:
        write_files(tmp_path / "proc", {"cpuinfo": text})
    monkeypatch.setattr(machine, "_ROOT", tmp_path)
    found = machine.read_cpu_flags()
    assert found == set(flags.split())
    assert machine.read_processor() == name or (name is None and machine.read_processor())
    assert machine.find_bf16_units(found) == (("amx_bf16",) if "amx_bf16" in flags else ())
    assert machine.find_int8_units(found) == (("avx512_vnni",) if "avx512_vnni" in flags else ())
    note = machine.warn_about_int8(found)
    assert note is None if "vnni" in flags else "may be no faster than FP32" in str(note)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "max 100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({}, 4),
    ],
)
def test_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], cores: int) -> None:
    """As many as this process may use, at most the limit of its container, by both generations of cgroups."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(4))
    monkeypatch.setattr(machine, "_ROOT", tmp_path)
    write_files(tmp_path / "sys/fs/cgroup", files)
    assert machine.read_cores() == cores


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


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The shared libraries that can be loaded, by name."""
    found: dict[str, Any] = {}

    def load(name: str) -> Any:
        try:
            return found[name.split(".")[0]]
        except KeyError:
            raise OSError(f"{name}: cannot open shared object file") from None

    monkeypatch.setattr(machine, "ctypes", SimpleNamespace(**{**vars(ctypes), "CDLL": load}))
    return found


def test_gpus_are_read_from_the_driver(libraries: dict[str, Any]) -> None:
    assert read_machine() == Machine((), None)
    libraries["libcuda"] = FakeCuda()
    assert read_gpus() == (Gpu("Tesla T4", "7.5"), Gpu("NVIDIA A10", "8.6"))
    assert str(Gpu("Tesla T4", "7.5")) == "Tesla T4 (compute capability 7.5)"


@pytest.mark.parametrize(
    "broken", ["cuInit", "cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetName", "cuDeviceGetAttribute"]
)
def test_a_driver_that_fails_shows_no_gpu(libraries: dict[str, Any], broken: str) -> None:
    libraries["libcuda"] = FakeCuda(broken)
    assert read_gpus() == ()


def test_the_version_comes_from_the_library_itself(libraries: dict[str, Any]) -> None:
    import tensorrt_rtx
    import tensorrt_rtx_libs

    path = next(Path(tensorrt_rtx_libs.__file__).parent.glob("libtensorrt_rtx.so*"))
    libraries["libnvinfer"] = ctypes.CDLL(str(path))
    assert read_tensorrt_version() == tensorrt_rtx.__version__


def test_the_version_of_a_library_without_single_numbers(libraries: dict[str, Any]) -> None:
    libraries["libnvinfer"] = SimpleNamespace(getInferLibVersion=lambda: 101302)
    assert read_tensorrt_version() == "10.13.2"


@pytest.mark.parametrize(
    ("limit", "usage", "memory_bytes"),
    [
        ("max\n", "5\n", 8000 * 1024),
        ("3000000\n", "1000000\n", 2_000_000),
        ("1000\n", "2000\n", 0),
        (f"{1 << 62}\n", "1\n", 8000 * 1024),
    ],
)
@pytest.mark.parametrize(
    "files", [("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")]
)
def test_memory_that_a_container_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: tuple[str, str], limit: str, usage: str, memory_bytes: int
) -> None:
    monkeypatch.setattr(machine, "_ROOT", tmp_path)
    write_files(tmp_path / "proc", {"meminfo": "MemTotal:       16000 kB\nMemAvailable:    8000 kB\n"})
    assert machine.read_available_memory() == 8000 * 1024
    write_files(tmp_path / "sys/fs/cgroup", dict(zip(files, (limit, usage), strict=True)))
    assert machine.read_available_memory() == memory_bytes
