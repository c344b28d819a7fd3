"""Watching a server and restarting it: what `mlcls serve` does once the server is ready.

A fault always ends the server. With restarts, it is started again after a pause, which doubles with each fault and is
reset once the server was healthy for a while. Without, the command ends with the reason, and whatever started it
(systemd, Docker, Kubernetes) restarts it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

from mlcls.errors import MlclsError, RestartsExhaustedError, ServerError, UnhealthyServerError
from mlcls.server.health_probe import HealthProbe
from mlcls.server.process import TritonServer
from mlcls.server.watchdog import Watchdog

# How often the processes are checked.
WATCH_INTERVAL_S: Final = 0.25

# A model is unhealthy after this many failed probes in a row; a single one may fail because the machine was busy.
FAILED_PROBES: Final = 2

# And has got nothing done for this many times its full batch, which on a busy machine takes longer than usual.
FULL_BATCHES: Final = 3.0

# How long an unhealthy server may still answer requests for its healthy models.
ABANDON_TIMEOUT_S: Final = 2.0

# The pause before a restart doubles up to this.
LONGEST_PAUSE_S: Final = 30.0

# After a server was healthy for this long, the pause is the first one again.
HEALTHY_S: Final = 30.0


class Restarts:
    """Counts restarts and decides how long to wait before each: at first `first_pause_s`.

    More restarts than `most` within a window end the command. The clock is a monotonic one, in seconds.
    """

    def __init__(
        self, most: int, window_s: float, first_pause_s: float, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._most, self._window_s, self._first_pause_s, self._clock_s = most, window_s, first_pause_s, clock_s
        self._times_s: deque[float] = deque()
        self._in_a_row = 0

    @property
    def count(self) -> int:
        """Number of restarts within the window."""
        return len(self._times_s)

    def note(self, reason: str, healthy_s: float) -> float:
        """Note a fault of a server that was ready for some seconds, and return how long to wait before the restart.

        Raises:
            RestartsExhaustedError: The server was restarted too often.
        """
        now_s = self._clock_s()
        while self._times_s and now_s - self._times_s[0] > self._window_s:
            self._times_s.popleft()
        if self.count >= self._most:
            raise RestartsExhaustedError(
                f"Gave up: the server was restarted {self.count} times within {self._window_s:.0f} s, the most that "
                f"--max-restarts allows. The last reason: {reason}"
            )
        self._times_s.append(now_s)
        self._in_a_row = 1 if healthy_s >= HEALTHY_S else self._in_a_row + 1
        return float(min(LONGEST_PAUSE_S, self._first_pause_s * 2.0 ** min(self._in_a_row - 1, 32)))


def watch(
    server: TritonServer,
    hang_timeout_s: float,
    probe_interval_s: float,
    probe_timeout_s: float,
    also: Callable[[], None],
) -> None:
    """Block while a server is healthy.

    Args:
        server: A server that is ready.
        hang_timeout_s: How long a Python step may work on one request or batch.
        probe_interval_s: How often each model is probed; 0 for never.
        probe_timeout_s: How long the answer to a probe may take.
        also: Called at each check; what it raises ends the watch.

    Raises:
        ServerError: The server ended.
        UnhealthyServerError: A step was killed, is stopped or hangs, or a model does not answer.
    """
    watchdog = Watchdog(server.pid, server.pulses, hang_timeout_s)
    ended = threading.Event()
    faults: list[str] = []

    def probe() -> None:
        health_probe = HealthProbe(server.http_url, server.metrics_url, probe_timeout_s, server.pulses)
        failed = dict.fromkeys(server.options.models, 0)
        worked_s = dict.fromkeys(server.options.models, time.monotonic())
        while not faults and not ended.wait(probe_interval_s):
            for name in failed:
                health = health_probe.ask(name)
                if health.verdict != "fails":
                    failed[name], worked_s[name] = 0, time.monotonic()
                    continue
                failed[name] += 1
                is_overdue = time.monotonic() - worked_s[name] > FULL_BATCHES * health.full_batch_s
                if failed[name] >= FAILED_PROBES and is_overdue:
                    faults.append(f"{health}, {failed[name]} probes in a row")

    if probe_interval_s:  # in a thread, which a hanging server keeps waiting; so it is not joined either
        threading.Thread(target=probe, name="mlcls-probe", daemon=True).start()
    try:
        while True:
            server.wait(WATCH_INTERVAL_S)
            fault = watchdog.find_fault() or next(iter(faults), None)
            if fault is not None:
                server.wait(0)  # if the server itself ended, that is the better reason
                raise UnhealthyServerError(f"The server is unhealthy: {fault}")
            also()
    finally:
        ended.set()


def keep_serving(
    make: Callable[[], TritonServer],
    serve: Callable[[TritonServer], None],
    restarts: Restarts | None,
    say: Callable[[str], None],
) -> None:
    """Start a server and serve, again after each fault if restarts are allowed.

    Args:
        make: Returns a server that is not started.
        serve: Called with the ready server; blocks while it is healthy, as `watch` does.
        restarts: Counts restarts; None allows none.
        say: Called with one line per event.

    Raises:
        MlclsError: The first start failed; without restarts: any fault.
        RestartsExhaustedError: The server was restarted too often.
    """
    was_ready = False
    fault_s: float | None = None
    while True:
        ready_s: float | None = None
        try:
            with _ending(make()) as server:
                server.start()
                ready_s = time.monotonic()
                if fault_s is not None:
                    say(f"Ready again, {ready_s - fault_s:.1f} s after the fault.")
                was_ready = True
                serve(server)
        except MlclsError as error:
            if restarts is None or not was_ready:
                raise
            now_s = time.monotonic()
            if ready_s is not None:
                fault_s = now_s
            pause_s = restarts.note(str(error), 0.0 if ready_s is None else now_s - ready_s)
            say(f"{str(error).rstrip('.')}. Restart {restarts.count} in {pause_s:.1f} s.")
            time.sleep(pause_s)


@contextlib.contextmanager
def _ending(server: TritonServer) -> Iterator[TritonServer]:
    """End a server when the block ends; after a fault it has a short time to answer what it can."""
    try:
        yield server
    except ServerError:
        server.abandon(ABANDON_TIMEOUT_S)
        raise
    finally:
        server.stop()
