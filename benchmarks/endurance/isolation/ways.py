"""All the ways in which `make isolation` asks: tritonclient, plain sockets and `mlcls_client`."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import queue
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np

from benchmarks.endurance.isolation.identity_model import MODEL
from benchmarks.endurance.isolation.questions import ImageAnswer, Question

TIMEOUT_S: Final = 20.0
# Requests in flight on one stream, and of one asynchronous client.
IN_FLIGHT: Final = 8
_STREAM_LENGTH: Final = 50
# Pause after a request that costs the server nothing, so that these do not crowd out the others.
_SPARING_S: Final = 0.05


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a server is.

    Attributes:
        grpc_url: `host:port`.
        http_url: `host:port`.
        admin_key: Key for shared memory.
    """

    grpc_url: str
    http_url: str
    admin_key: str


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The outcome of a question: answers or an error; neither if it was given up on purpose."""

    question: Question
    answers: tuple[ImageAnswer, ...] | None = None
    version: int | None = None
    error: Exception | None = None


Asker = Callable[[Place, Iterator[Question]], Iterator[Outcome]]


def ask_grpc(place: Place, questions: Iterator[Question]) -> Iterator[Outcome]:
    """Ask over gRPC, one request after the other."""
    import tritonclient.grpc as grpc

    with grpc.InferenceServerClient(place.grpc_url) as client:
        for question in questions:
            yield _attempt(question, functools.partial(_infer_grpc, client))


def ask_http(place: Place, questions: Iterator[Question]) -> Iterator[Outcome]:
    """Ask over HTTP, one request after the other."""
    import tritonclient.http as http

    options = {"connection_timeout": TIMEOUT_S, "network_timeout": TIMEOUT_S}
    with http.InferenceServerClient(place.http_url, **options) as client:
        for question in questions:
            yield _attempt(question, lambda asked: client.infer(**_arguments(http, asked)))


def ask_stream(place: Place, questions: Iterator[Question]) -> Iterator[Outcome]:
    """Ask on gRPC streams, several requests at once; answers arrive in any order and are matched by id.

    Each stream ends after some requests: while one is open, Triton 2.51 keeps the version that its requests were for,
    and a rollout waits for it.
    """
    for question in questions:
        yield from _ask_on_stream(place, itertools.chain([question], itertools.islice(questions, _STREAM_LENGTH)))


def _ask_on_stream(place: Place, questions: Iterator[Question]) -> Iterator[Outcome]:
    import tritonclient.grpc as grpc

    arrived: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
    waiting: dict[str, Question] = {}
    with grpc.InferenceServerClient(place.grpc_url) as client:
        client.start_stream(lambda result, error: arrived.put((result, error)))
        for number, question in enumerate(questions):
            waiting[str(number)] = question
            try:
                client.async_stream_infer(**_arguments(grpc, question), request_id=str(number))
            except Exception as error:  # the stream has ended; the requests on it are lost
                yield from (Outcome(lost, error=error) for lost in waiting.values())
                return
            while len(waiting) >= IN_FLIGHT:
                yield from _take(arrived, waiting)
        while waiting:
            yield from _take(arrived, waiting)


def _take(arrived: queue.SimpleQueue[tuple[Any, Any]], waiting: dict[str, Question]) -> Iterator[Outcome]:
    try:
        result, error = arrived.get(timeout=TIMEOUT_S)
    except queue.Empty:
        result, error = None, TimeoutError(f"nothing came on the stream for {TIMEOUT_S:g} s")
    if result is not None and (question := waiting.pop(result.get_response().id, None)) is not None:
        yield _read(question, result)
        return
    # Triton's error on a stream does not say which request it is for: all in flight count as failed
    yield from [Outcome(question, error=error) for question in waiting.values()]
    waiting.clear()


def ask_bad_alone(place: Place, questions: Iterator[Question]) -> Iterator[Outcome]:
    """Send single images that are not images, next to the other ways; each refusal must be about its own request."""
    import tritonclient.grpc as grpc

    with grpc.InferenceServerClient(place.grpc_url) as client:
        for number, question in enumerate(questions):
            spoilt = Question((None,), (f"no image, number {number}".encode(),), question.threshold)
            length = len(spoilt.images[0])
            outcome = _attempt(spoilt, functools.partial(_infer_grpc, client))
            if outcome.error is not None and f"got text ({length} bytes" in str(outcome.error):
                status = str(outcome.error)
                outcome = Outcome(spoilt, (ImageAnswer({"error": status}, status),))
            yield outcome
            time.sleep(_SPARING_S)


def ask_and_cancel(place: Place, questions: Iterator[Question]) -> Iterator[Outcome]:
    """Send requests that are in turn answered, timed out right after sending, or canceled."""
    import tritonclient.grpc as grpc

    source = random.Random(7)
    with grpc.InferenceServerClient(place.grpc_url) as client:
        for number, question in enumerate(questions):
            if number % 3 == 0:
                yield _attempt(question, functools.partial(_infer_grpc, client))
                continue
            arrived: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()

            def note(result: Any, error: Any, box: queue.SimpleQueue[tuple[Any, Any]] = arrived) -> None:
                box.put((result, error))

            limit_s = source.uniform(0.001, 0.02) if number % 3 == 1 else TIMEOUT_S
            call = client.async_infer(**_arguments(grpc, question), callback=note, client_timeout=limit_s)
            if number % 3 == 2:
                threading.Event().wait(source.uniform(0.0, 0.01))
                call.cancel()
            result, error = arrived.get(timeout=TIMEOUT_S + 5)
            given_up = any(words in str(error) for words in ("CANCELLED", "DEADLINE_EXCEEDED", "Deadline Exceeded"))
            if result is not None:
                yield _read(question, result)
            else:
                yield Outcome(question, error=None if given_up else error)


def ask_and_hang_up(place: Place, questions: Iterator[Question]) -> Iterator[Outcome]:
    """Close the HTTP connection before the answer arrives, or before the request is complete."""
    host, port = place.http_url.rsplit(":", 1)
    for number, question in enumerate(questions):
        image = next((image for image in question.images if image), b"x")
        head = (
            f"POST /v2/models/{MODEL}/infer HTTP/1.1\r\nHost: {host}\r\nInference-Header-Content-Length: 0\r\n"
            f"Content-Type: application/octet-stream\r\nContent-Length: {len(image)}\r\n\r\n"
        )
        sent = head.encode() + (image if number % 2 else image[: len(image) // 2])
        try:
            with socket.create_connection((host, int(port)), TIMEOUT_S) as connection:
                connection.sendall(sent)
            yield Outcome(question)
        except OSError as error:
            yield Outcome(question, error=error)
        time.sleep(_SPARING_S)


def _arguments(module: Any, question: Question) -> dict[str, Any]:
    tensor = module.InferInput("image", [len(question.images), 1], "BYTES")
    tensor.set_data_from_numpy(np.array(question.images, dtype=np.object_).reshape(-1, 1))
    text = question.threshold_text
    return {
        "model_name": MODEL,
        "inputs": [tensor],
        "outputs": [module.InferRequestedOutput(name) for name in ("scores", "result", "status")],
        "parameters": None if text is None else {"threshold": text},
    }


def _infer_grpc(client: Any, question: Question) -> Any:
    import tritonclient.grpc as grpc

    return client.infer(**_arguments(grpc, question), client_timeout=TIMEOUT_S)


def _attempt(question: Question, ask: Callable[[Question], Any]) -> Outcome:
    """Return the outcome of a request with tritonclient."""
    try:
        return _read(question, ask(question))
    except Exception as error:
        return Outcome(question, error=error)


def _read(question: Question, answer: Any) -> Outcome:
    try:
        scores = answer.as_numpy("scores")
        rows = zip(scores, answer.as_numpy("result").ravel(), answer.as_numpy("status").ravel(), strict=True)
        answers = tuple(ImageAnswer(json.loads(result), status.decode(), row) for row, result, status in rows)
        response = answer.get_response()
        version = response["model_version"] if isinstance(response, dict) else response.model_version
        return Outcome(question, answers, int(version))
    except Exception as error:
        return Outcome(question, error=error)


def ask_client(place: Place, questions: Iterator[Question], **options: Any) -> Iterator[Outcome]:
    """Ask through `mlcls_client`, which keeps several requests in flight and returns the answers in order.

    Each call of `predict` sends the images of a question in requests of random size.
    """
    from mlcls_client import create_model

    source = random.Random(11)
    http = options.pop("http", False)
    url = place.http_url if http else place.grpc_url
    protocol = "http" if http else "grpc"
    with create_model(MODEL, url=url, protocol=protocol, timeout_s=TIMEOUT_S, retries=0, **options) as model:
        for question in questions:
            size = source.choice((1, 2, 5, 32))

            def ask(asked: Question, size: int = size) -> tuple[ImageAnswer, ...]:
                images = iter(_never_empty(asked))
                results = model.predict(images, batch_size=size, threshold=asked.threshold, on_error="yield")
                return tuple(_read_result(result) for result in results)

            try:
                yield Outcome(question, ask(question))
            except Exception as error:
                yield Outcome(question, error=error)


def ask_client_shared_memory(place: Place, questions: Iterator[Question]) -> Iterator[Outcome]:
    """Ask through `mlcls_client`, with images in shared memory."""
    yield from ask_client(place, questions, shared_memory=True, admin_key=place.admin_key)


def ask_client_http(place: Place, questions: Iterator[Question]) -> Iterator[Outcome]:
    """Ask through `mlcls_client` over HTTP."""
    yield from ask_client(place, questions, http=True)


def ask_client_async(place: Place, questions: Iterator[Question]) -> Iterator[Outcome]:
    """Ask through `mlcls_client` on asyncio, several questions at once."""
    import asyncio

    from mlcls_client import create_async_model

    async def ask(model: Any, question: Question) -> Outcome:
        try:
            results = [
                _read_result(result)
                async for result in model.predict(
                    _never_empty(question), batch_size=3, threshold=question.threshold, on_error="yield"
                )
            ]
            return Outcome(question, tuple(results))
        except Exception as error:
            return Outcome(question, error=error)

    async def ask_some(some: Sequence[Question]) -> list[Outcome]:
        async with create_async_model(MODEL, url=place.grpc_url, timeout_s=TIMEOUT_S, retries=0) as model:
            return await asyncio.gather(*(ask(model, question) for question in some))

    while some := [question for question, _ in zip(questions, range(IN_FLIGHT), strict=False)]:
        yield from asyncio.run(ask_some(some))


WAYS: Final[Mapping[str, Asker]] = {
    "gRPC": ask_grpc,
    "HTTP": ask_http,
    "gRPC stream": ask_stream,
    "gRPC, cancelled": ask_and_cancel,
    "HTTP, hung up": ask_and_hang_up,
    "bad images alone": ask_bad_alone,
    "client": ask_client,
    "client, HTTP": ask_client_http,
    "client, shared memory": ask_client_shared_memory,
    "client, asyncio": ask_client_async,
}


def _never_empty(question: Question) -> list[bytes]:
    """Return the images without empty ones, which the client would refuse to send."""
    return [image or b"nothing" for image in question.images]


def _read_result(result: Any) -> ImageAnswer:
    if result.error is not None:
        from mlcls_client import ImageRejectedError

        if not isinstance(result.error, ImageRejectedError):
            raise result.error
        return ImageAnswer({"error": str(result.error)}, str(result.error))
    return ImageAnswer(result, "OK")
