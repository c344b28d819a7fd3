"""What the kernel says of processes, from /proc."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import time
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")
_GROUP_END_TIMEOUT_S: Final = 5.0


@dataclasses.dataclass(frozen=True)
class ProcessState:
    """A process that runs.

    Attributes:
        start: When it was started, in ticks since the machine was; another process of the same id has another.
        is_stopped: Whether a signal has stopped it.
        group: Its process group.
    """

    start: int
    is_stopped: bool
    group: int


def read_process(pid: int) -> ProcessState | None:
    """The state of a process; None where it is gone, or has ended and waits for its parent to take note."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may hold spaces and parentheses
    state, group, start = fields[0], int(fields[2]), int(fields[19])
    return None if state in "ZX" else ProcessState(start, state == "T", group)


def end_group(pid: int) -> None:
    """Kills what is left of a process group, and waits until it is gone: it may hold ports.

    Args:
        pid: The process that the group is named after; it has ended.
    """
    deadline = time.monotonic() + _GROUP_END_TIMEOUT_S
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
        while _has_members(pid) and time.monotonic() < deadline:
            time.sleep(0.01)


def _has_members(group: int) -> bool:
    pids = (int(path.name) for path in _PROC.iterdir() if path.name.isdigit())
    return any(process is not None and process.group == group for process in map(read_process, pids))
