"""Users that send requests over gRPC, with tritonclient."""

from __future__ import annotations

import itertools
import time
from typing import Any, ClassVar

import grpc.experimental.gevent
from locust import User, task
from tritonclient.utils import InferenceServerException

from benchmarks.load.locustfiles import triton_grpc
from benchmarks.load.locustfiles.locust_events import BACKOFF_S, ChosenShape, current_session, pause_s, user_generator
from benchmarks.load.locustfiles.outcomes import FAILURES, Kind
from benchmarks.load.locustfiles.reply import Reply

grpc.experimental.gevent.init_gevent()

__all__ = ["ChosenShape", "GrpcUser"]


class GrpcUser(User):  # type: ignore[misc]  # locust is not in mypy's environment
    """Sends a request, checks the answer, and repeats; on its own connection."""

    _numbers: ClassVar = itertools.count()

    def __init__(self, environment: Any) -> None:
        """Connect."""
        super().__init__(environment)
        self._options = environment.parsed_options
        self._random = user_generator(environment, "grpc", next(self._numbers))
        self._client = triton_grpc.connect(self._options.grpc_url)
        self._refused = False

    def wait_time(self) -> float:
        """Return how long locust waits between two tasks, in seconds."""
        return pause_s(self._options, self._random) + (BACKOFF_S if self._refused else 0.0)

    def on_stop(self) -> None:
        """Close the connection."""
        self._client.close()

    @task  # type: ignore[untyped-decorator]
    def infer(self) -> None:
        """Send one request and report it to Locust as its own HTTP client does."""
        session = current_session()
        batch = session.begin("grpc", self._random)
        arguments = triton_grpc.encode_request([sample.data for sample in batch], self._options.threshold or None)
        size_bytes = 0
        start_time, began = time.time(), time.perf_counter()
        try:
            result = self._client.infer(self._options.model, client_timeout=self._options.deadline, **arguments)
            latency_s = time.perf_counter() - began
            size_bytes = result.get_response().ByteSize()
            reply: Reply = triton_grpc.decode_result(result, len(batch))
        except InferenceServerException as error:
            latency_s = time.perf_counter() - began
            reply = triton_grpc.decode_error(error)
        kind, name = session.finish("grpc", batch, reply, latency_s)
        self._refused = kind in (Kind.UNAVAILABLE, Kind.LOST)
        self.environment.events.request.fire(
            request_type="grpc",
            name=name,
            response_time=latency_s * 1e3,
            response_length=size_bytes,
            exception=RuntimeError(kind.value) if kind in FAILURES else None,
            context=self.context(),
            start_time=start_time,
            url=self._options.grpc_url,
        )
