"""Locust's side of a load test: users over gRPC and HTTP whose every answer is checked, and the shapes of load.

Locust runs it in `.venv-bench`, which has no mlcls. An answer that must not occur is a failure in Locust's statistics,
with what was wrong as its text; any other outcome is a name of its own next to `1 image`, `4 images`.
"""

from __future__ import annotations

import itertools
import logging
import os
import random
import signal
import time
from pathlib import Path
from typing import Any, Final

import gevent
import grpc.experimental.gevent
import tritonclient.grpc
import tritonclient.http
from gevent.event import AsyncResult
from locust import LoadTestShape, User, events, task
from locust.runners import STATE_RUNNING, STATE_SPAWNING, WORKER_REPORT_INTERVAL, MasterRunner, WorkerRunner
from tritonclient.utils import InferenceServerException

from benchmarks.asking import Refusal, Reply, connect, make_request, read_error, read_result
from benchmarks.load.answers import FAULTS, AnswerBook, Kind, learn_answers, read_answers, write_answers
from benchmarks.load.images import ImageMix, LoadTestError
from benchmarks.load.options import add_arguments, choose_users, open_mix

grpc.experimental.gevent.init_gevent()

_log = logging.getLogger(__name__)

# How long a user waits if the server is full or did not answer.
BACKOFF_S: Final = 0.2
# Ends a test early without losing answers. On an interrupt, Locust itself gives workers half a second.
END_SIGNAL: Final = signal.SIGUSR1

_ALL_AT_ONCE: Final = 1000.0
_DEFAULT_RUN_TIME_S: Final = 60.0
# Locust keeps each text of a failure; further ones have only their kind.
_MAX_DETAILS: Final = 50

_session = AsyncResult()
_numbers = itertools.count()
_details: set[str] = set()
_ending = False


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def _add_options(parser: Any) -> None:
    add_arguments(parser)
    parser.add_argument("--grpc-url", default="127.0.0.1:8001", metavar="HOST:PORT", help="default: %(default)s")
    parser.add_argument("--http-url", default="127.0.0.1:8000", metavar="HOST:PORT", help="default: %(default)s")


@events.init.add_listener  # type: ignore[untyped-decorator]
def _open(environment: Any, runner: Any, **_: Any) -> None:
    """Read the photos, and read or learn the expected answers; end Locust if that fails."""
    options = environment.parsed_options
    try:
        mix = open_mix(options)
        book = _expect(options, mix, environment.user_classes)
    except LoadTestError as error:
        raise SystemExit(f"load-test: {error}") from None  # Locust would log any other error and go on
    if book.alike:
        _log.warning("%d pairs of photos have answers too similar to detect a swap", book.alike)
    _session.set((mix, book))
    if not isinstance(runner, WorkerRunner):
        gevent.signal_handler(END_SIGNAL, _end_early, runner, options.headless)


def _expect(options: Any, mix: ImageMix, user_classes: Any) -> AnswerBook:
    path = Path(options.expected) if options.expected else None
    if path is not None and path.exists():
        return read_answers(path, mix.good, options.tolerance)
    user = user_classes[0]
    client = user.connect(options)

    def ask(images: Any) -> Reply:
        return _ask(user, client, options, make_request(user.module, images, options.threshold or None), len(images))

    book = learn_answers(ask, mix.good, options.tolerance)
    if path is not None:
        write_answers(path, book)
    return book


def _ask(user: Any, client: Any, options: Any, request: dict[str, Any], image_count: int) -> Reply:
    """Return the reply to a request; the deadline covers all of it."""
    try:
        with gevent.Timeout(options.deadline):
            result = user.infer(client, options, request)
    except InferenceServerException as error:
        return read_error(error)
    except gevent.Timeout:
        return Refusal("DEADLINE_EXCEEDED", f"no complete answer within {options.deadline:g} s")
    except Exception as error:  # tritonclient's HTTP client lets errors of the connection through
        return Refusal("NO_ANSWER", repr(error))
    return read_result(result, image_count)


def _end_early(runner: Any, headless: bool) -> None:
    """End the test as if its time were up and wait for all answers; with the web page, end Locust too."""
    global _ending
    _ending = True
    while not headless:
        if runner.state not in (STATE_SPAWNING, STATE_RUNNING):
            os.kill(os.getpid(), signal.SIGTERM)
            return
        gevent.sleep(0.2)


@events.quitting.add_listener  # type: ignore[untyped-decorator]
def _require_answers(environment: Any, **_: Any) -> None:
    """Fail a test without a single right answer; Locust itself fails one with failures."""
    right = sum(
        each.num_requests for (name, _), each in environment.stats.entries.items() if "image" in name.split()[-1]
    )
    if not right and not isinstance(environment.runner, WorkerRunner):
        environment.process_exit_code = 1


class _CheckingUser(User):  # type: ignore[misc]  # locust is not in mypy's environment
    """Sends a request, checks the answer, and repeats; on its own connection."""

    abstract = True
    protocol = ""

    def __init__(self, environment: Any) -> None:
        """Connect; random choices are the same in each run, and different for each user of each worker."""
        super().__init__(environment)
        self._options = environment.parsed_options
        worker = getattr(environment.runner, "worker_index", 0)
        self._random = random.Random(f"{self._options.seed} {self.protocol} {worker} {next(_numbers)}")
        self._client = self.connect(self._options)
        self._refused = False

    def wait_time(self) -> float:
        """Return how long to wait between two requests: exponentially distributed, like independent clients."""
        think_s = self._options.think_time
        return (self._random.expovariate(1 / think_s) if think_s > 0 else 0.0) + BACKOFF_S * self._refused

    def on_stop(self) -> None:
        """Close the connection."""
        self._client.close()

    @task  # type: ignore[untyped-decorator]
    def ask(self) -> None:
        """Send one request, check the answer, and report both to Locust."""
        mix, book = _session.get()  # a master may start users before it is open
        batch = mix.draw(self._random)
        request = make_request(self.module, [sample.data for sample in batch], self._options.threshold or None)
        reply: Reply = Refusal("NO_ANSWER", "unfinished when the test ended")
        start_time, began = time.time(), time.perf_counter()
        try:
            reply = _ask(self, self._client, self._options, request, len(batch))
        finally:  # also if Locust kills the user
            latency_s = time.perf_counter() - began
            kind, wrong = book.judge(batch, reply)
            self._refused = kind in (Kind.UNAVAILABLE, Kind.LOST)
            images = f"{len(batch)} image{'s' if len(batch) > 1 else ''}"
            self.environment.events.request.fire(
                request_type=self.protocol,
                name=images if kind is Kind.RIGHT else kind.value,
                response_time=latency_s * 1e3,
                response_length=0,
                exception=_describe(f"{images}: {kind.value}: {wrong}", kind) if kind in FAULTS else None,
                context=self.context(),
                start_time=start_time,
            )


def _describe(text: str, kind: Kind) -> RuntimeError:
    """Return the text of a failure if it is one of the first, else its kind."""
    if text not in _details and len(_details) >= _MAX_DETAILS:
        return RuntimeError(kind.value)
    _details.add(text)
    return RuntimeError(text)


class GrpcUser(_CheckingUser):
    """Asks over gRPC."""

    protocol = "grpc"
    module = tritonclient.grpc

    @staticmethod
    def connect(options: Any) -> Any:
        """Return a client."""
        return connect(options.grpc_url)

    @staticmethod
    def infer(client: Any, options: Any, request: dict[str, Any]) -> Any:
        """Return the result of a request."""
        return client.infer(options.model, client_timeout=options.deadline, **request)


class HttpUser(_CheckingUser):
    """Asks over HTTP with binary tensors."""

    protocol = "http"
    module = tritonclient.http

    @staticmethod
    def connect(options: Any) -> Any:
        """Return a client."""
        address = options.http_url.removeprefix("http://").rstrip("/")
        return tritonclient.http.InferenceServerClient(
            address, connection_timeout=options.deadline, network_timeout=options.deadline
        )

    @staticmethod
    def infer(client: Any, options: Any, request: dict[str, Any]) -> Any:
        """Return the result of a request."""
        # else Triton compresses the answer, and the compression is measured too
        return client.infer(options.model, headers={"Accept-Encoding": "identity"}, **request)


class ChosenShape(LoadTestShape):  # type: ignore[misc]  # locust is not in mypy's environment
    """`--shape ramp`, `soak` or `spike`, with Locust's own `--users`, `--spawn-rate` and `--run-time`.

    At the end, all users are stopped and waited for. Locust itself gives workers half a second, and requests in flight
    would go uncounted.
    """

    use_common_options = True
    _over_since: float | None = None

    def tick(self) -> tuple[int, float] | None:
        """Return the number of users and the rate at which they start, or None once all have stopped."""
        environment = self.runner.environment
        options = environment.parsed_options
        elapsed = self.get_run_time() / (options.run_time or _DEFAULT_RUN_TIME_S)
        wanted = None if _ending else choose_users(options, options.num_users or 1, elapsed)
        if wanted is not None:
            self._over_since = None
            return wanted, float(options.spawn_rate or _ALL_AT_ONCE)
        self._over_since = self._over_since or time.monotonic()
        over_s = time.monotonic() - self._over_since
        # reports of workers are on their way for a while
        reported_s = 2 * WORKER_REPORT_INTERVAL if isinstance(self.runner, MasterRunner) else 0.0
        is_drained = self.runner.user_count == 0 and over_s >= reported_s
        return None if is_drained or over_s > environment.stop_timeout + reported_s else (0, _ALL_AT_ONCE)
