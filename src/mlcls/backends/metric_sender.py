"""Counters of a Triton backend, added up in the process and sent to Triton's own /metrics by a thread.

A call of Triton's metric API is a message to the server and back, some 50 microseconds: far too long for each image.
So `execute` adds to arrays, and once a second a thread sends the growth. A model has one set of counters for all its
stub processes: Triton gives every process that names the same family and labels the same counter, and each adds its own
counts. A restarted process starts from zero and adds to what is there, so values never fall while the server runs.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

# How often counters are sent, in seconds: often enough even if Prometheus scrapes every 5 seconds.
SEND_INTERVAL_S: Final = 1.0


class CounterGroup:
    """The counters of one name; only one thread adds to them.

    Attributes:
        name: Name of the metric, as Prometheus shows it.
        labels: Labels of each counter.
        totals: (counters,) float64, the counts so far; changed in place and never lowered.
        interval_s: How often it is sent.
    """

    def __init__(
        self,
        name: str,
        description: str,
        labels: Sequence[Mapping[str, str]],
        interval_s: float = SEND_INTERVAL_S,
        shown_at_zero: bool = True,
    ) -> None:
        self.totals: npt.NDArray[np.float64] = np.zeros(len(labels))
        self.name, self._description, self.labels = name, description, labels
        # A counter that is not shown at zero appears when it first counts: many labels would be thousands of lines.
        self.interval_s, self._shown_at_zero = interval_s, shown_at_zero
        self._counters: list[Any] = [None] * len(labels)
        self._sent = self.totals.copy()
        self._next_s = 0.0

    def create(self, pb_utils: Any) -> None:
        """Create the family in Triton, and the counters that are shown at zero."""
        kind = pb_utils.MetricFamily.COUNTER
        self._family = _keep(pb_utils.MetricFamily(name=self.name, description=self._description, kind=kind))
        for index in range(len(self.labels) if self._shown_at_zero else 0):
            self._counter(index)

    def send_due(self, now_s: float) -> None:
        """Send the growth, if it is time to."""
        if now_s < self._next_s:
            return
        self._next_s = now_s + self.interval_s * 0.9  # the thread wakes up late, never early
        totals = self.totals.copy()
        for index in np.flatnonzero(totals != self._sent).tolist():
            self._counter(index).increment(float(totals[index] - self._sent[index]))
        self._sent = totals

    def _counter(self, index: int) -> Any:
        if self._counters[index] is None:
            self._counters[index] = _keep(self._family.Metric(labels=dict(self.labels[index])))
        return self._counters[index]


class MetricSender:
    """Sends the growth of counter groups, in a thread of its own, until `stop`.

    It talks to Triton through `triton_python_backend_utils`, a module that exists inside the stub process only.
    """

    def __init__(self, groups: Sequence[CounterGroup], pb_utils: Any) -> None:
        self._pb_utils, self._groups = pb_utils, groups
        self._interval_s = min(group.interval_s for group in groups)
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mlcls-metrics", daemon=True)
        try:
            for group in groups:
                group.create(pb_utils)
        except Exception as error:  # a server without metrics (--allow-metrics=false) still serves
            self._give_up(error)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread and send the rest."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        self.send_due(float("inf"))

    def send_due(self, now_s: float) -> None:
        """Send the groups that are due."""
        with self._lock:
            try:
                for group in self._groups:
                    group.send_due(now_s)
            except Exception as error:  # no image may fail because of it
                self._give_up(error)

    def _run(self) -> None:
        while self._groups and not self._ended.wait(self._interval_s):
            self.send_due(time.monotonic())

    def _give_up(self, error: Exception) -> None:
        self._groups = ()
        self._pb_utils.Logger.log_warn(f"mlcls: no metrics of this process: {type(error).__name__}: {error}")


def _keep(metric: Any) -> Any:
    """Keep an object of Triton's metric API alive past the end of Python.

    When the object goes, the server removes the family or counter, which other processes still use: Triton 2.51 then
    reads freed memory.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(metric))
    return metric
