"""Where and with what a measurement ran, as text for whoever reads its figures."""

from __future__ import annotations

import math
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

_PACKAGES: Final = (
    "mlcls",
    "nvidia-pytriton",
    "openvino",
    "onnxruntime",
    "paddlepaddle",
    "opencv-python-headless",
    "pillow",
)


def describe_machine() -> dict[str, str]:
    """Facts by name: processor, cores, memory, system, Python, packages."""
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
    """The facts in one paragraph."""
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def read_processor() -> str:
    """The processor's name as Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown processor")


def read_cores(system: Path = Path("/")) -> int:
    """Processor cores that this process may use: those it may run on, and no more than its container's share of time.

    Args:
        system: Root of the file system.
    """
    cores = len(os.sched_getaffinity(0))
    folder = system / "sys/fs/cgroup"
    try:
        if (folder / "cpu.max").is_file():  # cgroup 2
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        share = int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # not there, or "max"
        return cores
    return min(cores, max(math.ceil(share), 1)) if share > 0 else cores  # -1: no limit


def _read_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
