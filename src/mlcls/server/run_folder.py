"""The run folder of a server, and the end of everything that belongs to it.

A `mlcls serve` that is killed cannot end its server. A Python step of Triton 2.51 whose server ends while it loads may
wait for ever, and nobody removes the shared memory. So a second process, the keeper, waits for the end of `mlcls serve`
and does the rest. If the keeper is killed too, the next start does it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from mlcls.backends.pulse import PULSE_FOLDER_VARIABLE
from mlcls.base.files import abandoned_folders, held_folder
from mlcls.base.processes import read_process

_PREFIX: Final = "mlcls-serve-"
_PULSES: Final = "pulses"

# How long the keeper lets a server answer what it has accepted.
_STOP_TIMEOUT_S: Final = 40.0
_KILL_TIMEOUT_S: Final = 5.0
_INTERVAL_S: Final = 0.05


@contextlib.contextmanager
def run_folder() -> Iterator[Path]:
    """Yield a folder for the files of one server; nothing of that server outlives the block or this process.

    What servers of this user left whose `mlcls serve` and keeper were killed is removed first.
    """
    parent = Path(tempfile.gettempdir())
    for abandoned in abandoned_folders(parent, _PREFIX):
        remove_server(abandoned)
    with held_folder(parent, f"{_PREFIX}{os.getpid()}_") as folder:
        pulse_folder(folder).mkdir()
        try:
            with subprocess.Popen(
                [sys.executable, "-m", __name__, str(folder)],
                stdin=subprocess.PIPE,  # ends when this process does, or with the block
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is not for it
            ):
                yield folder
        finally:
            _remove_shared_memory(folder)


def pulse_folder(folder: Path) -> Path:
    """Return the folder of the pulses in a run folder; each process of the server has it in its environment."""
    return folder / _PULSES


def shared_memory_prefix(folder: Path) -> str:
    """Return how the names of a server's regions in /dev/shm begin."""
    return f"mlcls_{folder.name.removeprefix(_PREFIX)}_"


def remove_server(folder: Path) -> None:
    """Kill all processes of a server, and remove its shared memory and its run folder."""
    deadline = time.monotonic() + _KILL_TIMEOUT_S
    while (pids := _find_processes(folder)) and time.monotonic() < deadline:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_INTERVAL_S)
    _remove_shared_memory(folder)
    shutil.rmtree(folder, ignore_errors=True)


def keep(folder: Path) -> None:
    """Wait until standard input ends, then have the server end itself, and remove what is left."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)  # they are for `mlcls serve`, whose end is awaited
    sys.stdin.buffer.read()
    deadline = time.monotonic() + _STOP_TIMEOUT_S
    for leader in _find_leaders(folder):
        with contextlib.suppress(ProcessLookupError):
            os.kill(leader, signal.SIGTERM)
    while _find_leaders(folder) and time.monotonic() < deadline:
        time.sleep(_INTERVAL_S)
    remove_server(folder)


def _find_leaders(folder: Path) -> list[int]:
    """Return the process of tritonserver, while there is one."""
    states = {pid: read_process(pid) for pid in _find_processes(folder)}
    return [pid for pid, state in states.items() if state is not None and state.group == pid]


def _find_processes(folder: Path) -> list[int]:
    """Return the processes of a server: those with its folder of pulses in their environment."""
    mark = f"{PULSE_FOLDER_VARIABLE}={pulse_folder(folder)}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            if mark in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


def _remove_shared_memory(folder: Path) -> None:
    for segment in Path("/dev/shm").glob(f"{shared_memory_prefix(folder)}*"):
        segment.unlink(missing_ok=True)


if __name__ == "__main__":
    keep(Path(sys.argv[1]))
