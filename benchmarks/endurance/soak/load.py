"""The load of a soak run: requests at a steady rate, each answer compared with its image's reference."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from mlcls.errors import MissingExtraError

# Time limit of a request with all its tries; longer than any recovery from a fault should take.
REQUEST_TIMEOUT_S: Final = 60.0
# Time limit of one try.
TRY_TIMEOUT_S: Final = 15.0
# Pause before the next try; it doubles up to the longest, minus a random part of up to half, as in mlcls-client.
FIRST_PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 2.0
# Most requests in flight, including those that wait for a server that is down.
_CALLERS: Final = 64
_CLOSED_LOOP_CALLERS: Final = 8
# How late a request may be sent.
_LATEST_S: Final = 0.5
# The server is another process than the one that computed the reference, and sums FP32 in another order.
HIGHEST_DIFFERENCE: Final = 1e-3


@dataclasses.dataclass(frozen=True)
class Photo:
    """An image and what each model must answer to it.

    Attributes:
        content: The encoded image.
        scores: (num_labels,) float32, by model.
        result: The labels in `result` with the model's own thresholds, by model.
    """

    content: bytes
    scores: Mapping[str, npt.NDArray[np.float32]]
    result: Mapping[str, Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The outcome of one request.

    Attributes:
        model: The model that was asked.
        sent_s: Monotonic time of the first try.
        ended_s: Monotonic time of the end.
        tries: How often it was sent.
        kind: `answered`; `wrong`: the answer is not its image's; `refused`: the last try ended in a clear error;
            `lost`: the last try ended with neither an answer nor an error from the server.
        error: Error of the last failed try.
    """

    model: str
    sent_s: float
    ended_s: float
    tries: int
    kind: str
    error: str = ""


class SoakLoad:
    """Threads that send requests at a fixed rate, whatever happens to earlier ones; a context manager.

    Attributes:
        outcomes: Outcomes of all requests that have ended.
        errors: Number of failed tries, by error.
    """

    def __init__(self, url: str, photos: Sequence[Photo], models: Sequence[str], rate: float, seed: int) -> None:
        """Create the threads; entering the context starts them.

        Args:
            url: `host:port` of the gRPC API.
            photos: What to send, in turn.
            models: The models to ask, in turn.
            rate: Requests per second; 0 for as many as the threads can send.
            seed: Seed of the times between requests.
        """
        self.outcomes: list[Outcome] = []
        self.errors: Counter[str] = Counter()
        self.sent = 0
        self._url, self._photos, self._models, self._rate = url, photos, models, rate
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._turns = itertools.count()
        self._next_s = 0.0
        self._stop = threading.Event()
        count = _CLOSED_LOOP_CALLERS if rate == 0 else _CALLERS
        self._threads = [threading.Thread(target=self._run, name=f"soak-{n}", daemon=True) for n in range(count)]

    def __enter__(self) -> SoakLoad:
        self._next_s = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(REQUEST_TIMEOUT_S + TRY_TIMEOUT_S)

    def count(self) -> Counter[str]:
        """Return the number of requests by kind of outcome."""
        return Counter(outcome.kind for outcome in list(self.outcomes))

    def _run(self) -> None:
        try:
            from tritonclient.grpc import InferenceServerClient
        except ModuleNotFoundError as error:
            raise MissingExtraError("serve", str(error.name)) from error
        options = [
            ("grpc.enable_http_proxy", 0),
            ("grpc.max_reconnect_backoff_ms", 500),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        with InferenceServerClient(self._url, channel_args=options) as client:
            while not self._stop.is_set():
                with self._lock:
                    turn = next(self._turns)
                    # if all threads wait for a server that is down, they do not make up for it later
                    due_s = max(self._next_s, time.monotonic() - _LATEST_S)
                    if self._rate:
                        self._next_s = due_s + self._random.expovariate(self._rate)
                if self._stop.wait(max(0.0, due_s - time.monotonic())):
                    return
                with self._lock:
                    self.sent += 1
                model = self._models[turn % len(self._models)]
                outcome = self._ask(client, self._photos[(turn // len(self._models)) % len(self._photos)], model)
                with self._lock:
                    self.outcomes.append(outcome)

    def _ask(self, client: object, photo: Photo, model: str) -> Outcome:
        sent_s = time.monotonic()
        error, kind = "", "refused"
        for tries in itertools.count(1):
            try:
                fault = ask_once(client, photo, model)
            except Exception as problem:  # whatever it is, this try failed
                error, has_reason = describe(problem)
                kind = "refused" if has_reason else "lost"
                with self._lock:
                    self.errors[error] += 1
                pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** (tries - 1)) * self._random.uniform(0.5, 1.0)
                if time.monotonic() - sent_s + pause_s > REQUEST_TIMEOUT_S:
                    return Outcome(model, sent_s, time.monotonic(), tries, kind, error)
                time.sleep(pause_s)
            else:
                kind = "wrong" if fault else "answered"
                return Outcome(model, sent_s, time.monotonic(), tries, kind, fault or error)
        raise AssertionError("unreachable")


def ask_once(client: object, photo: Photo, model: str) -> str | None:
    """Send one request.

    Returns:
        What is wrong with the answer; None if it is right.
    """
    from tritonclient.grpc import InferInput, InferRequestedOutput

    tensor = InferInput("image", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[photo.content]], dtype=np.object_))
    outputs = [InferRequestedOutput("scores"), InferRequestedOutput("result")]
    answer = client.infer(  # type: ignore[attr-defined]
        model, [tensor], outputs=outputs, client_timeout=TRY_TIMEOUT_S, timeout=int(TRY_TIMEOUT_S * 1e6)
    )
    difference = float(np.abs(answer.as_numpy("scores")[0] - photo.scores[model]).max())
    if not difference < HIGHEST_DIFFERENCE:
        return f"scores differ by {difference:.2g}"
    names = json.loads(answer.as_numpy("result").ravel()[0])["label_names"]
    return None if set(names) == set(photo.result[model]) else f"labels {names}"


def describe(problem: Exception) -> tuple[str, bool]:
    """Return a short error text without digits, and whether the error tells the client what happened to its request.

    The client's own deadline does not tell it.
    """
    status = getattr(problem, "status", None)
    code = str(status() if callable(status) else type(problem).__name__).removeprefix("StatusCode.")
    message = getattr(problem, "message", None)
    text = str(message() if callable(message) else problem).split("\n")[0]
    text = "".join("N" if letter.isdigit() else letter for letter in text)[:90]
    return f"{code}: {text}", code != "DEADLINE_EXCEEDED"
