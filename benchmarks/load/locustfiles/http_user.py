"""Users that send requests over HTTP, with Locust's own client and Triton's binary tensors."""

from __future__ import annotations

import itertools
from typing import Any, ClassVar

import gevent
from locust import FastHttpUser, task

from benchmarks.load.locustfiles import triton_http
from benchmarks.load.locustfiles.locust_events import BACKOFF_S, ChosenShape, current_session, pause_s, user_generator
from benchmarks.load.locustfiles.outcomes import FAILURES, Kind
from benchmarks.load.locustfiles.reply import Refusal, Reply

__all__ = ["ChosenShape", "HttpUser"]


class HttpUser(FastHttpUser):  # type: ignore[misc]  # locust is not in mypy's environment
    """Sends a request, checks the answer, and repeats; on its own connection."""

    _numbers: ClassVar = itertools.count()

    def __init__(self, environment: Any) -> None:
        """Prepare the connection; the first request opens it."""
        self._options = environment.parsed_options
        self.host = self._options.http_url
        self.network_timeout = self.connection_timeout = self._options.deadline
        super().__init__(environment)
        self._random = user_generator(environment, "http", next(self._numbers))
        self._refused = False

    def wait_time(self) -> float:
        """Return how long locust waits between two tasks, in seconds."""
        return pause_s(self._options, self._random) + (BACKOFF_S if self._refused else 0.0)

    @task  # type: ignore[untyped-decorator]
    def infer(self) -> None:
        """Send one request; the deadline covers all of it, while the client's own timeouts cover single reads."""
        session = current_session()
        batch = session.begin("http", self._random)
        headers, body = triton_http.encode_request([sample.data for sample in batch], self._options.threshold or None)
        path = triton_http.infer_path(self._options.model)
        with (
            gevent.Timeout(self._options.deadline) as deadline,
            self.client.request("POST", path, data=body, headers=headers, catch_response=True) as response,
        ):
            deadline.cancel()  # what follows is the check
            reply = self._decode(response, len(batch))
            kind, name = session.finish("http", batch, reply, response.request_meta["response_time"] / 1e3)
            self._refused = kind in (Kind.UNAVAILABLE, Kind.LOST)
            response.request_meta.update(request_type="http", name=name)
            if kind in FAILURES:
                response.failure(RuntimeError(kind.value))
            else:
                response.success()

    @staticmethod
    def _decode(response: Any, image_count: int) -> Reply:
        # The client returns a connection error as a response: in one of two places, and wrapped in another error.
        broken = response.request_meta["exception"]
        if response.status_code == 0 or (response.status_code == 200 and broken is not None):
            error = response.error if response.status_code == 0 else broken
            error = getattr(error, "original", error)
            late = isinstance(error, gevent.Timeout | TimeoutError)
            return Refusal("DEADLINE_EXCEEDED" if late else "NO_ANSWER", f"{type(error).__name__}: {error}")
        return triton_http.decode_response(
            response.status_code, dict(response.headers.items()), response.content or b"", image_count
        )
