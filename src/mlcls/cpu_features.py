"""What the processor offers to the engines: integer units for INT8, and bf16 units, which change scores if used."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Final

#: Instruction sets with 8-bit dot products, as Linux names them.
INT8_FLAGS: Final = ("avx512_vnni", "avx_vnni", "amx_int8")

#: Instruction sets with bf16 products; OpenVINO takes bf16 by itself where it finds one and nothing forbids it.
BF16_FLAGS: Final = ("avx512_bf16", "amx_bf16")

_CPU_INFO: Final = Path("/proc/cpuinfo")


def read_cpu_flags(path: Path = _CPU_INFO) -> frozenset[str]:
    """Flags of the first processor; empty where Linux does not tell, as on other architectures than x86."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    for line in text.splitlines():
        name, colon, flags = line.partition(":")
        if colon and name.strip() == "flags":
            return frozenset(flags.split())
    return frozenset()


def find_int8_units(flags: Collection[str]) -> tuple[str, ...]:
    """Those of `INT8_FLAGS` that are there."""
    return tuple(flag for flag in INT8_FLAGS if flag in flags)


def find_bf16_units(flags: Collection[str]) -> tuple[str, ...]:
    """Those of `BF16_FLAGS` that are there."""
    return tuple(flag for flag in BF16_FLAGS if flag in flags)


def warn_about_int8(flags: Collection[str]) -> str | None:
    """What to expect of INT8 on a processor without units for it; None where it has them."""
    if find_int8_units(flags):
        return None
    return (
        f"Note: this processor has none of {', '.join(INT8_FLAGS)}; INT8 may be no faster than FP32 on it. Measure "
        f"both before you serve it."
    )
