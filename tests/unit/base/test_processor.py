"""Flags of the processor, from files as Linux writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlcls.base.machine import find_bf16_units, find_int8_units, read_available_memory, read_cpu_flags, warn_about_int8

CPU_INFO = """processor\t: 0
model name\t: Some processor
flags\t\t: fpu sse2 avx2 {extra}
bogomips\t: 5192.24

processor\t: 1
flags\t\t: fpu
"""


def test_flags_of_the_first_processor(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(CPU_INFO.format(extra="avx512_vnni amx_bf16"))
    flags = read_cpu_flags(path)
    assert flags == {"fpu", "sse2", "avx2", "avx512_vnni", "amx_bf16"}
    assert find_int8_units(flags) == ("avx512_vnni",)
    assert find_bf16_units(flags) == ("amx_bf16",)
    assert warn_about_int8(flags) is None


def test_a_processor_without_units(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(CPU_INFO.format(extra=""))
    flags = read_cpu_flags(path)
    assert (find_int8_units(flags), find_bf16_units(flags)) == ((), ())
    assert "may be no faster than FP32" in str(warn_about_int8(flags))


@pytest.mark.parametrize("text", [None, "", "Features\t: asimd bf16\n"], ids=["no file", "empty", "another machine"])
def test_nothing_is_known(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "cpuinfo"
    if text is not None:
        path.write_text(text)
    assert read_cpu_flags(path) == frozenset()


MEMINFO = "MemTotal:       16000 kB\nMemAvailable:    8000 kB\n"


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
    tmp_path: Path, files: tuple[str, str], limit: str, usage: str, memory_bytes: int
) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text(MEMINFO)
    assert read_available_memory(tmp_path) == 8000 * 1024
    for file, text in zip(files, (limit, usage), strict=True):
        path = tmp_path / "sys/fs/cgroup" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert read_available_memory(tmp_path) == memory_bytes
