"""The ways of `mlcls_client`, and the list of all ways in which `make isolation` asks."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from benchmarks.endurance.identity_model import MODEL
from benchmarks.endurance.isolation_clients import (
    IN_FLIGHT,
    TIMEOUT_S,
    Asker,
    Outcome,
    Place,
    ask_and_cancel,
    ask_and_hang_up,
    ask_bad_alone,
    ask_grpc,
    ask_http,
    ask_stream,
)
from benchmarks.endurance.isolation_questions import ImageAnswer, Question


def ask_client(place: Place, questions: Iterator[Question], **options: Any) -> Iterator[Outcome]:
    """Through `mlcls_client`, which keeps several requests in flight and puts the answers in order.

    Each call of `predict` takes the images of a question in requests of random size.
    """
    from mlcls_client.model import create_model

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
    """Through `mlcls_client`, with images in memory that it shares with the server."""
    yield from ask_client(place, questions, shared_memory=True, admin_key=place.admin_key)


def ask_client_http(place: Place, questions: Iterator[Question]) -> Iterator[Outcome]:
    """Through `mlcls_client` over HTTP."""
    yield from ask_client(place, questions, http=True)


def ask_client_async(place: Place, questions: Iterator[Question]) -> Iterator[Outcome]:
    """Through `mlcls_client` on asyncio, several questions at once."""
    import asyncio

    from mlcls_client.async_model import create_async_model

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
    """Return images for the client, which refuses an empty one before it is sent."""
    return [image or b"nothing" for image in question.images]


def _read_result(result: Any) -> ImageAnswer:
    if result.error is not None:
        from mlcls_client.errors import ImageRejectedError

        if not isinstance(result.error, ImageRejectedError):
            raise result.error
        return ImageAnswer({"error": str(result.error)}, str(result.error))
    return ImageAnswer(result, "OK")
