"""Processes of this machine: their state, ending them, signals, and the TCP ports that they listen on."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import signal
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Final

from mlcls.errors import ServerError

_PROC: Final = Path("/proc")
_GROUP_END_TIMEOUT_S: Final = 5.0
# of <linux/prctl.h>
_PR_SET_PDEATHSIG: Final = 1


@dataclasses.dataclass(frozen=True)
class ProcessState:
    """A process that runs, or that a signal has stopped."""

    start: int  # in clock ticks since boot; tells it from a later process with the same id
    is_stopped: bool
    group: int


def read_process(pid: int) -> ProcessState | None:
    """Return the state of a process, or None if it is gone or a zombie."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may hold spaces and parentheses
    state, group, start = fields[0], int(fields[2]), int(fields[19])
    return None if state in "ZX" else ProcessState(start, state == "T", group)


def has_zombie(pid: int) -> bool:
    """Return whether a child of a process has ended without the process having taken notice."""
    for path in (_PROC / str(pid) / "task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in path.read_text().split():
                if (_PROC / child / "stat").read_text(errors="replace").rpartition(")")[2].split()[0] == "Z":
                    return True
    return False


def end_group(pid: int) -> None:
    """Kill what is left of the process group of a leader that has ended, and wait until its ports are free."""
    deadline = time.monotonic() + _GROUP_END_TIMEOUT_S
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
        while _has_members(pid) and time.monotonic() < deadline:
            time.sleep(0.01)


def end_with_parent(parent: int | None = None) -> None:
    """Have the kernel send this process SIGTERM when the thread that started it ends, for whatever reason.

    If the process of its parent is given, SIGTERM also comes if that has ended already.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if parent not in (None, os.getppid()):
        os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGTERM while the block runs; for the main thread only."""

    def interrupt(_signum: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def check_ports(host: str, ports: Mapping[str, int]) -> None:
    """Check that ports, given by the options that set them, differ and are free at an address.

    Raises:
        ServerError: Two ports are the same, or one is taken.
    """
    if len(set(ports.values())) != len(ports):
        raise ServerError(f"Expected different ports, got {', '.join(f'{k} {v}' for k, v in ports.items())}.")
    for option, port in ports.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                raise ServerError(
                    f"Port {port} on {host} cannot be used ({error.strerror}); choose another with {option}."
                ) from None


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Return `count` different ports that are free right now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in sockets:
            probe.bind((host, 0))
        return [probe.getsockname()[1] for probe in sockets]


def _has_members(group: int) -> bool:
    pids = (int(path.name) for path in _PROC.iterdir() if path.name.isdigit())
    return any(process is not None and process.group == group for process in map(read_process, pids))
