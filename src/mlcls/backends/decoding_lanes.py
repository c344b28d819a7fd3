"""The lanes of a process that decodes: requests with large images wait for one another, and small ones do not wait.

A step that decoded in the order of arrival would let one caller with large images keep all others waiting. So large
requests leave the queue for the lane of their size, a thread of low priority. It takes the one that asks for least
first, image by image, though none waits for ever for smaller ones. The processor's scheduler gives the small requests
and the engine most of the time.
"""

from __future__ import annotations

import bisect
import contextlib
import heapq
import itertools
import math
import os
import threading
import time
import traceback
from collections.abc import Callable
from typing import Final

from mlcls.errors import OverloadedError

# Work of a request in seconds of one core, above which it goes to the first lane, and so on: about 0.5, 4 and 24
# megapixels of JPEG.
LANES_FROM_S: Final = (0.005, 0.03, 0.2)
# Niceness of their threads: 5 is a third of the processor time of a thread with 0, if both want it. With less of it, a
# thread would hold the lock of the interpreter for longer when it frees a picture, which keeps small requests waiting.
_NICENESS: Final = (1, 3, 5)
# A request lets those pass which come later by up to this many times the difference of their work.
_YIELDING: Final = 3.0

# Does a piece of the work; returns whether there is more. It is given an error if it has waited too long.
Job = Callable[[OverloadedError | None], bool]


class DecodingLanes:
    """All lanes of a process; at most `most_waiting` requests wait in each."""

    def __init__(self, most_waiting: int) -> None:
        self._lanes = [_Lane(most_waiting, niceness) for niceness in _NICENESS]

    def run(self, job: Job, work_s: float, timeout_s: float) -> None:
        """Run a small job to its end, or let a larger one run in its turn.

        Args:
            job: What to do.
            work_s: What it takes, in seconds of one core.
            timeout_s: How long it may wait for its first turn.
        """
        lane = bisect.bisect_left(LANES_FROM_S, work_s)
        if lane:
            self._lanes[lane - 1].put(job, work_s, timeout_s)
            return
        while job(None):
            pass

    def close(self) -> None:
        """Run what waits, and end the threads."""
        for lane in self._lanes:
            lane.close()


class _Lane:
    """A thread that runs jobs, and those that wait for it."""

    def __init__(self, most_waiting: int, niceness: int) -> None:
        self._most_waiting, self._niceness = most_waiting, niceness
        self._waiting: list[tuple[float, int, float, Job]] = []  # turn, number, latest begin, job
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="mlcls-lane", daemon=True)
        self._thread.start()

    def put(self, job: Job, work_s: float, timeout_s: float) -> None:
        now_s = time.monotonic()
        with self._changed:
            is_full = len(self._waiting) >= self._most_waiting
            if not is_full:
                self._push(now_s + _YIELDING * work_s, now_s + timeout_s, job)
        if is_full:
            job(OverloadedError(f"{self._most_waiting} requests with large images are waiting; send it again later."))

    def close(self) -> None:
        with self._changed:
            self._push(math.inf, math.inf, lambda _: False)
        self._thread.join()

    def _push(self, turn_s: float, latest_s: float, job: Job) -> None:
        heapq.heappush(self._waiting, (turn_s, next(self._numbers), latest_s, job))
        self._changed.notify()

    def _run(self) -> None:
        with contextlib.suppress(OSError):  # a sandbox may forbid it
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self._niceness)
        turn_s = 0.0
        while turn_s != math.inf:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                turn_s, number, latest_s, job = heapq.heappop(self._waiting)
            late = time.monotonic() > latest_s
            error = OverloadedError("it has waited too long for its turn; send it again later.") if late else None
            try:
                goes_on = job(error)
            except Exception:  # the others must go on all the same
                traceback.print_exc()
                goes_on = False
            if goes_on:
                with self._changed:
                    heapq.heappush(self._waiting, (turn_s, number, math.inf, job))
