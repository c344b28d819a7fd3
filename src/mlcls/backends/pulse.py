"""The pulse of a stub process: since when it has been at work, in a file of the server's own folder.

Triton 2.51 neither restarts a Python step that was killed or hangs, nor reports it: the server stays ready. So each
step writes a pulse, and `watchdog` reads it. The clock is the monotonic one, which all processes of a machine share and
which does not move when the date is set.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

# Id of the requests with which `mlcls serve` and `mlcls health` ask whether a model answers; the backends do not count
# them.
PROBE_REQUEST_ID: Final = "mlcls-probe"

# Environment variable that names the folder of the pulses; `mlcls serve` sets it for the server that it starts.
PULSE_FOLDER_VARIABLE: Final = "MLCLS_PULSE_FOLDER"

# Times that no running machine has. A process takes requests from the end of its start until Triton tells it to end.
# Outside of that time its absence is not a fault of the server: whoever loads a model gets the error.
IDLE: Final = 0
ENDED: Final = 1
STARTING: Final = 2
_SINCE: Final = struct.Struct("=Q")


class Pulse:
    """The pulse of this process, a file in the folder of all pulses of one server.

    Nobody reads it unless `mlcls serve` started Triton; then there is a folder. The step is the model instance.
    """

    def __init__(self, folder: Path | None, step: str) -> None:
        content = _SINCE.pack(STARTING) + step.encode()
        self._lock = threading.Lock()
        self._working: dict[int, int] = {}  # since when each thread has been at work
        if folder is None:
            self._map = mmap.mmap(-1, len(content))
            return
        path = folder / str(os.getpid())
        unfinished = path.with_suffix(".new")
        unfinished.write_bytes(content)
        unfinished.rename(path)
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), len(content))

    @classmethod
    def open(cls, args: Mapping[str, str]) -> Pulse:
        """Return the pulse of a Triton backend, from the arguments of `initialize`."""
        folder = os.environ.get(PULSE_FOLDER_VARIABLE)
        return cls(Path(folder) if folder else None, args["model_instance_name"])

    def begin(self) -> None:
        """Report that this process has started and takes requests now."""
        self._write(IDLE)

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Mark the block as work of this thread; the pulse is that of the thread that has shown none for longest."""
        self.beat()
        try:
            yield
        finally:
            self._note(None)

    def beat(self) -> None:
        """Report that a piece of this thread's work is done and the next one begins."""
        self._note(time.monotonic_ns())

    def note_progress(self, under_way: int) -> None:
        """Report that one of several concurrent pieces of work is done, and how many are still under way."""
        self._write(time.monotonic_ns() if under_way else IDLE)

    def end(self) -> None:
        """Report that this process is about to end on request."""
        self._write(ENDED)

    def _note(self, since_ns: int | None) -> None:
        with self._lock:
            if since_ns is None:
                self._working.pop(threading.get_ident(), None)
            else:
                self._working[threading.get_ident()] = since_ns
            self._write(min(self._working.values(), default=IDLE))

    def _write(self, since_ns: int) -> None:
        _SINCE.pack_into(self._map, 0, since_ns)


def read_pulses(folder: Path) -> Iterator[tuple[int, str, int]]:
    """Yield the pulses in a server's folder, including those of processes that are gone.

    Yields:
        The process; Triton's name of the model instance, `demo_engine_0_0` for example; and the monotonic time in
        nanoseconds at which it began its current work, or `IDLE`, `ENDED` or `STARTING`.
    """
    for path in sorted(folder.iterdir()):
        if path.name.isdigit():  # others are still being written
            content = path.read_bytes()
            yield int(path.name), content[_SINCE.size :].decode(errors="replace"), *_SINCE.unpack_from(content)
