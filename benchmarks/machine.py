"""The machine that a benchmark ran on, and the commit of this checkout."""

from __future__ import annotations

import subprocess

from mlcls.base import machine as machine_description


def describe_machine() -> dict[str, str]:
    """Return facts by name: processor, cores, memory, system, Python, packages, commit of this checkout."""
    return {**machine_description.describe_machine(), "commit": _read_commit()}


def _read_commit() -> str:
    """Return the checkout's commit, followed by `+` if files differ from it."""
    try:
        command = ["git", "describe", "--always", "--dirty=+"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
