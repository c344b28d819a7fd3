"""Where and with what a benchmark ran."""

from __future__ import annotations

import os
import platform
import subprocess
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
    """Facts by name: processor, cores, memory, system, Python, packages, commit of this checkout."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": read_processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{memory_bytes / 2**30:.0f} GiB",
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: _read_version(name) for name in _PACKAGES},
        "commit": _read_commit(),
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


def _read_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _read_commit() -> str:
    """The checkout's commit, `+` behind it where files differ from it."""
    try:
        command = ["git", "describe", "--always", "--dirty=+"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
