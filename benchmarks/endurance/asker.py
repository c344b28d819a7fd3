"""The asker of the endurance runs: callers that ask in several ways, check each answer, and ask again after an error.

They ask models whose answers identify their images (`identity_model.py`), so that an answer that belongs to another
image, another request or another version is noticed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from benchmarks.asking import ImageReply, Refusal, connect, make_request, read_result
from benchmarks.endurance.questions import Question, make_question
from mlcls_client import DeadlineExceededError, ImageRejectedError, create_model

# Time limit of one try.
TRY_TIMEOUT_S: Final = 15.0
# Time limit of a request with all its tries; longer than any recovery from a fault should take. After a kill of
# `mlcls serve`, Triton waits half a minute for HTTP clients that keep their connections open.
PATIENCE_S: Final = 120.0
# Pause before the next try; it doubles up to the longest, minus a random part of up to half, as in mlcls-client.
FIRST_PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 2.0
# How late a request may be sent.
_LATEST_S: Final = 0.5

BATCH_SIZES: Final = (1, 1, 1, 1, 2, 3, 8, 32)
_RECONNECT: Final = tuple(
    (f"grpc.{which}_reconnect_backoff_ms", limit_ms)
    for which, limit_ms in (("initial", 100), ("min", 100), ("max", 500))
)


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a server is.

    Attributes:
        grpc_url: `host:port`.
        http_url: `host:port`.
        admin_key: Key for shared memory and for changing versions.
    """

    grpc_url: str
    http_url: str
    admin_key: str


# The replies to a question, and the version that the response states; None for both if the caller gave up on purpose.
Reading = tuple[Sequence[ImageReply] | None, int | None]
# Sends one request; raises what went wrong.
Ask = Callable[[Question], Reading]


@contextlib.contextmanager
def ask_grpc(place: Place, model: str) -> Iterator[Ask]:
    """Ask over gRPC."""
    with connect(place.grpc_url, *_RECONNECT) as client:
        yield lambda question: _infer_grpc(client, model, question, TRY_TIMEOUT_S)


@contextlib.contextmanager
def ask_http(place: Place, model: str) -> Iterator[Ask]:
    """Ask over HTTP."""
    limits = {"connection_timeout": TRY_TIMEOUT_S, "network_timeout": TRY_TIMEOUT_S}
    with tritonclient.http.InferenceServerClient(place.http_url, **limits) as client:

        def ask(question: Question) -> Reading:
            request = make_request(tritonclient.http, question.images, question.threshold_text)
            result = client.infer(model, **request)
            return _read(result, question, int(result.get_response()["model_version"]))

        yield ask


@contextlib.contextmanager
def ask_client(place: Place, model: str) -> Iterator[Ask]:
    """Ask through `mlcls_client`, with images in shared memory."""

    def ask(question: Question) -> Reading:
        options: dict[str, Any] = {"timeout_s": TRY_TIMEOUT_S, "retries": 0, "admin_key": place.admin_key}
        with create_model(model, url=place.grpc_url, shared_memory=True, **options) as client:
            images = iter(question.images)
            results = client.predict(images, len(question.images), threshold=question.threshold, on_error="yield")
            return [_read_client(result) for result in results], None

    yield ask


@contextlib.contextmanager
def ask_and_give_up(place: Place, model: str) -> Iterator[Ask]:
    """Ask over gRPC, and wait for every other answer no longer than a few milliseconds."""
    turns = itertools.count()
    with connect(place.grpc_url, *_RECONNECT) as client:

        def ask(question: Question) -> Reading:
            turn = next(turns)
            try:
                return _infer_grpc(client, model, question, (1 + turn % 20) / 1e3 if turn % 2 else TRY_TIMEOUT_S)
            except InferenceServerException as error:
                if turn % 2 and "DEADLINE_EXCEEDED" in str(error.status()):
                    return None, None
                raise

        yield ask


WAYS: Final = (ask_grpc, ask_http, ask_client, ask_and_give_up)
Way = Callable[[Place, str], contextlib.AbstractContextManager[Ask]]


def _infer_grpc(client: Any, model: str, question: Question, timeout_s: float) -> Reading:
    request = make_request(tritonclient.grpc, question.images, question.threshold_text)
    result = client.infer(model, client_timeout=timeout_s, timeout=int(TRY_TIMEOUT_S * 1e6), **request)
    return _read(result, question, int(result.get_response().model_version))


def _read(result: Any, question: Question, version: int) -> Reading:
    reply = read_result(result, len(question.images))
    if isinstance(reply, Refusal):
        raise ValueError(reply.message)
    return reply, version


def _read_client(result: Any) -> ImageReply:
    if result.error is None:
        return ImageReply(None, result, "OK")
    if not isinstance(result.error, ImageRejectedError):
        raise result.error
    return ImageReply(None, {"error": str(result.error)}, str(result.error))


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The outcome of one request.

    Attributes:
        sent_s: Monotonic time of the first try.
        ended_s: Monotonic time of the end.
        tries: How often it was sent.
        images: Images in it.
        kind: `answered`; `wrong`: an answer is not its image's; `refused`: the last try ended in a clear error;
            `lost`: the last try ended with neither an answer nor an error from the server; `given up` on purpose.
        text: What is wrong, or the last error.
    """

    sent_s: float
    ended_s: float
    tries: int
    images: int
    kind: str
    text: str = ""


class Asker:
    """Callers in threads; a context manager that starts them, and waits for their last answers.

    Attributes:
        sent: Number of requests.
        outcomes: Outcomes of all requests that have ended.
        errors: Number of failed tries, by error.
    """

    def __init__(
        self,
        place: Place,
        models: Sequence[str],
        callers: int,
        *,
        ways: Sequence[Way] = WAYS,
        rate: float = 0.0,
        seed: int = 1,
        patience_s: float = PATIENCE_S,
        batch_sizes: Sequence[int] = BATCH_SIZES,
    ) -> None:
        """Prepare the callers; each asks one of the models in one of the ways.

        Args:
            place: The server.
            models: Names of identity models.
            callers: Number of callers, and most requests in flight.
            ways: How to ask.
            rate: Requests per second, at random times; 0 for the next one right after each answer.
            seed: Seed of everything random.
            patience_s: How long a request is sent again after errors; 0 for one try.
            batch_sizes: Numbers of images per request to choose from.
        """
        self.sent = 0
        self.outcomes: list[Outcome] = []
        self.errors: Counter[str] = Counter()
        self._place, self._rate, self._seed = place, rate, seed
        self._patience_s, self._batch_sizes = patience_s, batch_sizes
        self._times = random.Random(seed)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._next_s = 0.0
        pairs = itertools.islice(itertools.cycle(itertools.product(ways, models)), callers)
        self._threads = [
            threading.Thread(target=self._run, args=(number, *pair), daemon=True) for number, pair in enumerate(pairs)
        ]

    def __enter__(self) -> Asker:
        self._next_s = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(self._patience_s + 2 * TRY_TIMEOUT_S)

    def _run(self, number: int, way: Way, model: str) -> None:
        source = random.Random(f"{self._seed} {number}")
        with way(self._place, model) as ask:
            while not self._stop.is_set():
                with self._lock:
                    # if all callers wait for a server that is down, they do not make up for it later
                    due_s = max(self._next_s, time.monotonic() - _LATEST_S)
                    if self._rate:
                        self._next_s = due_s + self._times.expovariate(self._rate)
                if self._stop.wait(max(0.0, due_s - time.monotonic())):
                    return
                with self._lock:
                    self.sent += 1
                outcome = self.ask_until_answered(ask, make_question(source, self._batch_sizes))
                with self._lock:
                    self.outcomes.append(outcome)

    def ask_until_answered(self, ask: Ask, question: Question) -> Outcome:
        """Send a question until it is answered or the patience is over, and check the answer."""
        sent_s = time.monotonic()
        for tries in itertools.count(1):
            try:
                replies, version = ask(question)
                fault = None if replies is None else question.find_fault(replies, version)
                kind, text = ("wrong", fault) if fault else ("given up" if replies is None else "answered", "")
            except Exception as error:  # whatever it is, this try failed
                text, has_reason = describe(error)
                with self._lock:
                    self.errors[text] += 1
                pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** (tries - 1)) * random.uniform(0.5, 1.0)
                time.sleep(pause_s)
                if time.monotonic() - sent_s < self._patience_s:
                    continue
                kind = "refused" if has_reason else "lost"
            return Outcome(sent_s, time.monotonic(), tries, len(question.images), kind, text)
        raise AssertionError("unreachable")


def describe(error: Exception) -> tuple[str, bool]:
    """Return a short error text without digits, and whether the error tells the client what happened to its request.

    The client's own deadline does not tell it.
    """
    status = getattr(error, "status", None)
    code = str(status() if callable(status) else type(error).__name__).removeprefix("StatusCode.")
    message = getattr(error, "message", None)
    text = str(message() if callable(message) else error).split("\n")[0]
    text = "".join("N" if letter.isdigit() else letter for letter in text)[:90]
    return f"{code}: {text}", code != "DEADLINE_EXCEEDED" and not isinstance(
        error, (DeadlineExceededError, TimeoutError)
    )
