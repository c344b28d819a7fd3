"""Watching a server and restarting it: what `mlcls serve` does once the server is ready.

A fault always ends the server. With restarts, it is started again after a pause, which doubles with each fault and is
reset once the server was healthy for a while. Without, the command ends with the reason, and whatever started it
(systemd, Docker, Kubernetes) restarts it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

from mlcls.errors import ConfigError, MlclsError, RestartsExhaustedError, ServerError, UnhealthyServerError
from mlcls.server.health_probe import DEFAULT_PROBE_TIMEOUT_S, HealthProbe
from mlcls.server.process import TritonServer
from mlcls.server.watchdog import DEFAULT_HANG_TIMEOUT_S, Watchdog

# How often the processes are checked.
WATCH_INTERVAL_S: Final = 0.25

# A model is unhealthy after this many failed probes in a row; a single one may fail because the machine was busy.
FAILED_PROBES: Final = 2

# How long an unhealthy server may still answer requests for its healthy models.
ABANDON_TIMEOUT_S: Final = 2.0

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class WatchSettings:
    """How a running server is watched.

    Attributes:
        hang_timeout_s: How long a Python step may work on one request or batch.
        probe_interval_s: How often each model is probed; 0 for never.
        probe_timeout_s: How long the answer to a probe may take.
    """

    hang_timeout_s: float = DEFAULT_HANG_TIMEOUT_S
    probe_interval_s: float = 10.0
    probe_timeout_s: float = DEFAULT_PROBE_TIMEOUT_S

    def __post_init__(self) -> None:
        _check_range("--hang-timeout", self.hang_timeout_s, 0.5, 86_400)
        if self.probe_interval_s != 0:
            _check_range("--probe-interval", self.probe_interval_s, 0.1, 3600)
        _check_range("--probe-timeout", self.probe_timeout_s, 0.1, 3600)


@dataclasses.dataclass(frozen=True)
class RestartSettings:
    """How often and after which pauses a server is restarted.

    Attributes:
        max_restarts: Restarts allowed within a window; one more ends the command.
        window_s: Length of the window.
        first_pause_s: Pause before the first restart.
        longest_pause_s: The pause doubles up to this.
        healthy_s: After a server was healthy for this long, the pause is the first one again.
    """

    max_restarts: int = 10
    window_s: float = 600.0
    first_pause_s: float = 0.5
    longest_pause_s: float = 30.0
    healthy_s: float = 30.0

    def __post_init__(self) -> None:
        _check_range("--max-restarts", self.max_restarts, 1, 1_000_000)
        _check_range("--restart-window", self.window_s, 1, 86_400 * 7)
        _check_range("--restart-pause", self.first_pause_s, 0, self.longest_pause_s)


class Restarts:
    """Counts restarts and decides how long to wait before each."""

    def __init__(self, settings: RestartSettings, clock_s: Callable[[], float] = time.monotonic) -> None:
        """Start with no restarts.

        Args:
            settings: How many are allowed, and after which pauses.
            clock_s: A monotonic clock, in seconds.
        """
        self._settings, self._clock_s = settings, clock_s
        self._times_s: deque[float] = deque()
        self._in_a_row = 0

    @property
    def count(self) -> int:
        """Number of restarts within the window."""
        return len(self._times_s)

    def note(self, reason: str, healthy_s: float) -> float:
        """Note a fault.

        Args:
            reason: What was wrong.
            healthy_s: How long the server was ready before it.

        Returns:
            How long to wait before the restart, in seconds.

        Raises:
            RestartsExhaustedError: The server was restarted too often.
        """
        settings, now_s = self._settings, self._clock_s()
        while self._times_s and now_s - self._times_s[0] > settings.window_s:
            self._times_s.popleft()
        if len(self._times_s) >= settings.max_restarts:
            raise RestartsExhaustedError(
                f"Gave up: the server was restarted {len(self._times_s)} times within {settings.window_s:.0f} s, the "
                f"most that --max-restarts allows. The last reason: {reason}"
            )
        self._times_s.append(now_s)
        self._in_a_row = 1 if healthy_s >= settings.healthy_s else self._in_a_row + 1
        return float(min(settings.longest_pause_s, settings.first_pause_s * 2.0 ** min(self._in_a_row - 1, 32)))


def watch(server: TritonServer, settings: WatchSettings, also: Callable[[], None] = lambda: None) -> None:
    """Block while a server is healthy.

    Args:
        server: A server that is ready.
        settings: How to watch it.
        also: Called at each check; what it raises ends the watch.

    Raises:
        ServerError: The server ended.
        UnhealthyServerError: A step was killed, is stopped or hangs, or a model does not answer.
    """
    watchdog = Watchdog(server.pid, server.pulses, settings.hang_timeout_s)
    with _Prober(server, settings) as prober:
        while True:
            server.wait(WATCH_INTERVAL_S)
            fault = watchdog.find_fault() or prober.fault
            if fault is not None:
                server.wait(0)  # if the server itself ended, that is the better reason
                raise UnhealthyServerError(f"The server is unhealthy: {fault}")
            also()


def keep_serving(
    make: Callable[[], TritonServer], serve: Callable[[TritonServer], None], restarts: Restarts | None, say: Say
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
            if ready_s is not None:
                fault_s = time.monotonic()
            pause_s = restarts.note(str(error), time.monotonic() - ready_s if ready_s is not None else 0.0)
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


class _Prober(threading.Thread):
    """Probes the models, in a thread, because a hanging server keeps it waiting.

    Attributes:
        fault: What is wrong; None while nothing is.
    """

    def __init__(self, server: TritonServer, settings: WatchSettings) -> None:
        super().__init__(name="mlcls-probe", daemon=True)
        self.fault: str | None = None
        self._models = server.options.models
        self._interval_s = settings.probe_interval_s
        self._probe = HealthProbe(server.http_url, server.metrics_url, settings.probe_timeout_s)
        self._ended = threading.Event()

    def __enter__(self) -> _Prober:
        if self._interval_s:
            self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()  # not joined: it may wait for a server that does not answer

    def run(self) -> None:
        failed = dict.fromkeys(self._models, 0)
        while not self._ended.wait(self._interval_s):
            for name in self._models:
                health = self._probe.ask(name)
                failed[name] = failed[name] + 1 if health.verdict == "fails" else 0
                if failed[name] >= FAILED_PROBES:
                    self.fault = f"{health}, {FAILED_PROBES} probes in a row"
                    return


def _check_range(option: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise ConfigError(f"Expected {option} {least:g} to {most:g}, got {value:g}.")
