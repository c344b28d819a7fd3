"""The watchdog of a running server: finds steps that were killed, are stopped or hang."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from mlcls.backends.pulse import ENDED, IDLE, STARTING, read_pulses
from mlcls.base.processes import ProcessState, read_process

# A debugger may stop a process for a moment; longer than this is a fault.
STOPPED_GRACE_S: Final = 2.0


class Watchdog:
    """Checks the processes of one server and the pulses of its steps; a check takes less than a millisecond.

    A step hangs if it works longer than `hang_timeout_s` on one request or batch. The clock is that of the pulses.
    """

    def __init__(
        self,
        server_pid: int,
        pulses: Path,
        hang_timeout_s: float,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._server_pid, self._pulses = server_pid, pulses
        self._hang_timeout_s, self._clock_ns = hang_timeout_s, clock_ns
        self._started: dict[int, int] = {}
        self._stopped_since_ns: dict[int, int] = {}

    def find_fault(self) -> str | None:
        """Return what is wrong with a process of the server, as the start of a sentence; None if nothing is."""
        if self._is_stopped_long(self._server_pid, read_process(self._server_pid)):
            return f"tritonserver (process {self._server_pid}) is stopped"
        for pid, step, since_ns in read_pulses(self._pulses):
            process = read_process(pid)
            if process is not None and process.start != self._started.setdefault(pid, process.start):
                process = None  # another process with this id
            if since_ns in (STARTING, ENDED):
                if process is None:
                    (self._pulses / str(pid)).unlink(missing_ok=True)
                    self._started.pop(pid, None)
                continue
            who = f"step {step} (process {pid})"
            if process is None:
                return f"{who} was killed or exited"
            if self._is_stopped_long(pid, process):
                return f"{who} is stopped"
            working_s = 0.0 if since_ns == IDLE else (self._clock_ns() - since_ns) / 1e9
            if working_s > self._hang_timeout_s:
                return f"{who} hangs: it has been working on one request for {working_s:.0f} s"
        return None

    def _is_stopped_long(self, pid: int, process: ProcessState | None) -> bool:
        if process is None or not process.is_stopped:
            self._stopped_since_ns.pop(pid, None)
            return False
        now_ns = self._clock_ns()
        since_ns = self._stopped_since_ns.setdefault(pid, now_ns)
        return now_ns - since_ns >= min(STOPPED_GRACE_S, self._hang_timeout_s) * 1e9
