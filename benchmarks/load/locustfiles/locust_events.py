"""Locust's side of a load test: options, shape, one session per process, and all tallies in one file.

Each locustfile imports it. Workers, on this machine or others, send their tallies to the master with Locust's own
reports.
"""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import time
from pathlib import Path
from typing import Any, Final

import gevent
from gevent.event import AsyncResult
from locust import LoadTestShape, events
from locust.runners import STATE_RUNNING, STATE_SPAWNING, WORKER_REPORT_INTERVAL, MasterRunner, WorkerRunner

from benchmarks.load.locustfiles.curves import choose_curve
from benchmarks.load.locustfiles.outcomes import Tally
from benchmarks.load.locustfiles.session import Session, add_arguments, open_session

_log = logging.getLogger(__name__)

# How long a user waits if the server is full or did not answer.
BACKOFF_S: Final = 0.2

# Ends a test early without losing answers. On an interrupt, Locust itself gives workers half a second.
END_SIGNAL: Final = signal.SIGUSR1

_session = AsyncResult()
_tally = Tally()
_ending = False
_outcomes: Path | None = None
_users_over_time: list[tuple[float, int]] = []

_DEFAULT_RUN_TIME_S: Final = 60.0
_ALL_AT_ONCE: Final = 1000.0


def current_session() -> Session:
    """Return this process's session; wait for it, because a master may start users before it is open."""
    session: Session = _session.get()
    return session


def current_tally() -> Tally:
    """Return this process's tally; a master's includes all its workers."""
    return _tally


def user_generator(environment: Any, protocol: str, number: int) -> random.Random:
    """Return a user's random generator: the same in each run, different for each user of each worker."""
    worker = getattr(environment.runner, "worker_index", 0)
    return random.Random(f"{environment.parsed_options.seed} {protocol} {worker} {number}")


def is_ending() -> bool:
    """Return whether the test is ending early."""
    return _ending


def pause_s(options: Any, generator: random.Random) -> float:
    """Return a user's pause between two requests, exponentially distributed like those of independent clients."""
    return generator.expovariate(1 / options.think_time) if options.think_time > 0 else 0.0


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def _add_options(parser: Any) -> None:
    add_arguments(parser)
    parser.add_argument("--grpc-url", default="127.0.0.1:8001", help="host:port (default: %(default)s)")
    parser.add_argument("--http-url", default="http://127.0.0.1:8000", help="default: %(default)s")
    parser.add_argument("--outcomes", default="", metavar="FILE", help="file for the counts, as JSON")
    parser.add_argument("--bin", type=float, default=1.0, metavar="S", help="length of a bin of the counts")


@events.init.add_listener  # type: ignore[untyped-decorator]
def _open(environment: Any, runner: Any, **_: Any) -> None:
    global _outcomes
    options = environment.parsed_options
    _tally.bin_s = options.bin
    if not isinstance(runner, MasterRunner):
        session = open_session(options, options.http_url, _tally)
        if session.book.alike:
            _log.warning("%d pairs of photos have answers too similar to detect a swap", session.book.alike)
        _session.set(session)
    if not isinstance(runner, WorkerRunner):
        _outcomes = Path(options.outcomes) if options.outcomes else None
        gevent.spawn(_watch_users, runner)
        gevent.signal_handler(END_SIGNAL, _end_early, runner, options.headless)


def _end_early(runner: Any, headless: bool) -> None:
    """End the test as if its time were up and wait for all answers; with the web page, end Locust too."""
    global _ending
    _ending = True
    while not headless:
        if runner.state not in (STATE_SPAWNING, STATE_RUNNING):
            os.kill(os.getpid(), signal.SIGTERM)
            return
        gevent.sleep(0.2)


@events.test_start.add_listener  # type: ignore[untyped-decorator]
def _start_over(environment: Any, **_: Any) -> None:
    """Reset the counts: on Locust's web page each start is a separate test, as in Locust's statistics."""
    if not isinstance(environment.runner, WorkerRunner):
        _tally.take()
        _users_over_time.clear()


@events.report_to_master.add_listener  # type: ignore[untyped-decorator]
def _report(client_id: str, data: dict[str, Any]) -> None:
    data["tally"] = _tally.take()


@events.worker_report.add_listener  # type: ignore[untyped-decorator]
def _add_report(client_id: str, data: dict[str, Any]) -> None:
    if "tally" in data:
        _tally.add(data["tally"])


@events.quit.add_listener  # type: ignore[untyped-decorator]
def _write(**_: Any) -> None:
    if _outcomes is not None:
        temporary = _outcomes.with_name(f".{_outcomes.name}.part")
        temporary.write_text(json.dumps({**_tally.export(), "users": _users_over_time}), encoding="utf-8")
        temporary.replace(_outcomes)


def _watch_users(runner: Any) -> None:
    while True:
        _users_over_time.append((time.time(), runner.user_count))
        gevent.sleep(_tally.bin_s / 2)


class ChosenShape(LoadTestShape):  # type: ignore[misc]  # locust is not in mypy's environment
    """`--shape ramp`, `soak` or `spike`, with Locust's own `--users`, `--spawn-rate` and `--run-time`.

    At the end, all users are stopped and waited for. Locust itself gives workers half a second, and requests in flight
    would go uncounted.
    """

    abstract = False
    use_common_options = True

    def __init__(self) -> None:
        """Start the clock."""
        super().__init__()
        self._draining_since: float | None = None

    def tick(self) -> tuple[int, float] | None:
        """Return the number of users and the rate at which they start, or None once all have stopped."""
        options = self.runner.environment.parsed_options
        users = options.num_users or 1
        curve = choose_curve(
            options.shape, users, options.run_time or _DEFAULT_RUN_TIME_S, options.steps, options.spike_factor
        )
        wanted = None if is_ending() else curve.users_at(self.get_run_time())
        rate = float(options.spawn_rate or _ALL_AT_ONCE)
        if wanted is not None:
            self._draining_since = None
            return wanted, rate
        if self._draining_since is None:
            self._draining_since = time.monotonic()
        return None if self._is_drained(time.monotonic() - self._draining_since) else (0, _ALL_AT_ONCE)

    def _is_drained(self, drained_s: float) -> bool:
        """Return whether all users have stopped and all workers have reported, or the time for that is up."""
        if drained_s > self.runner.environment.stop_timeout + 2 * WORKER_REPORT_INTERVAL:
            return True
        if self.runner.user_count > 0:
            return False
        if not isinstance(self.runner, MasterRunner):
            return True
        return drained_s > 2 * WORKER_REPORT_INTERVAL and current_tally().count_unfinished() <= 0
