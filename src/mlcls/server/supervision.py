"""Watching a server, and starting it again: what `mlcls serve` does from the ready line to the end.

A fault ends the server in any case. With restarts it is started again, after a pause that doubles from fault to fault
and is short again once the server was well for a while; without, the command ends with the reason, so that whoever
started it (systemd, Docker, Kubernetes) does the same.
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

# How often the processes are looked at.
WATCH_INTERVAL_S: Final = 0.25

# Probes in a row that a model must leave unanswered; one alone may have met a machine that was busy with other things.
FAILED_PROBES: Final = 2

# What a server that is not well is given to answer requests of the models that are.
ABANDON_TIMEOUT_S: Final = 2.0

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class WatchSettings:
    """How a running server is watched.

    Attributes:
        hang_timeout_s: How long a Python step may work on one request or batch.
        probe_interval_s: How often each model is asked for an answer; 0 for never.
        probe_timeout_s: How long such an answer may take.
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
    """How often and after which pauses a server is started again.

    Attributes:
        max_restarts: Within a window; one more ends the command.
        window_s: Length of the window.
        first_pause_s: Before the first restart.
        longest_pause_s: The pause doubles up to this.
        healthy_s: A server that was well for so long is restarted after the first pause again.
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
    """Counts restarts and tells how long to wait before each."""

    def __init__(self, settings: RestartSettings, clock_s: Callable[[], float] = time.monotonic) -> None:
        """None has happened yet.

        Args:
            settings: How many, and after which pauses.
            clock_s: A clock that no change of the date moves.
        """
        self._settings, self._clock_s = settings, clock_s
        self._times_s: deque[float] = deque()
        self._in_a_row = 0

    @property
    def count(self) -> int:
        """Restarts within the window."""
        return len(self._times_s)

    def note(self, reason: str, healthy_s: float) -> float:
        """Note a fault.

        Args:
            reason: What was wrong.
            healthy_s: How long the server was ready before it.

        Returns:
            How long to wait before the server is started again, in seconds.

        Raises:
            RestartsExhaustedError: It was started again too often.
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
    """Block while a server is well.

    Args:
        server: It is ready.
        settings: What to look at.
        also: Called at each look; what it raises ends the watch.

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
                server.wait(0)  # the end of the server, which takes its steps along, is the better reason
                raise UnhealthyServerError(f"The server is not well: {fault}")
            also()


def keep_serving(
    make: Callable[[], TritonServer], serve: Callable[[TritonServer], None], restarts: Restarts | None, say: Say
) -> None:
    """Start a server and serve; again after each fault if restarts are wanted.

    Args:
        make: Returns a server that is not started.
        serve: Is called with the ready server and blocks while it is well, as `watch` does.
        restarts: How often to start it again; None for never.
        say: Takes one line for each event.

    Raises:
        MlclsError: The server could not be started for the first time; without restarts: any fault.
        RestartsExhaustedError: It was started again too often.
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
    """End a server with the block; an unhealthy one answers what it can within a short time."""
    try:
        yield server
    except ServerError:
        server.abandon(ABANDON_TIMEOUT_S)
        raise
    finally:
        server.stop()


class _Prober(threading.Thread):
    """Asks the models for answers, in a thread, as a server that hangs keeps it waiting.

    Attributes:
        fault: What is wrong, once something is.
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
