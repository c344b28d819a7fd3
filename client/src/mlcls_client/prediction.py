"""One `predict` call: its checked options, the window of its pending batches, and how these are read and answered.

`Model` and `AsyncModel` differ only in how they wait.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import math
import re
import secrets
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, Generic, Literal, TypeVar, get_args

from mlcls_client.base.files import FileNames
from mlcls_client.base.threads import ReaderThreads
from mlcls_client.errors import ImageRejectedError, InputError, InvalidRequestError, MlclsClientError
from mlcls_client.inputs.encoding import ArrayFormat, encode_image
from mlcls_client.inputs.sources import ImageSource
from mlcls_client.result import MultiLabelResult
from mlcls_client.transport.contract import STATUS_OK, Answer, Threshold, encode_threshold
from mlcls_client.transport.transports import Transport

OnError = Literal["raise", "yield", "skip"]
PendingBatch = TypeVar("PendingBatch", "Future[Any]", "asyncio.Task[Any]")

# A step of the served ensemble queues 128 requests and refuses more; other clients need their share.
MAX_CONCURRENCY: Final = 96
_USUAL_CONCURRENCY: Final = 16
# Requests wait for one another on the server within their time limit, so fewer large ones are sent at once.
_USUAL_IMAGES_IN_FLIGHT: Final = 64
# Pending batches per request in flight: while one is slow, this many others are answered behind it.
_WINDOW_PER_REQUEST: Final = 4
_MAX_HELD_BYTES: Final = 64 * 2**20
# Printable, so that any log shows it unchanged.
_REQUEST_ID: Final = re.compile(r"[\x21-\x7e]{1,100}")
# The two headers of W3C Trace Context. Baggage is not sent: it is private to the caller and may hold anything.
_TRACE_HEADERS: Final = ("traceparent", "tracestate")

logger = logging.getLogger("mlcls_client")


class Window(Generic[PendingBatch]):
    """The batches between the input and the results that were taken.

    For each result that is taken, one batch is read from the input. More are read as long as the next result is not
    there, until `limit` batches are pending: waiting, sent, or answered and not yet taken. So the window fills up if
    the server is slow, and a slow input (a camera) never delays an answer by more than one batch.
    """

    def __init__(self, sources: Iterator[ImageSource], batch_size: int, limit: int) -> None:
        self._sources = sources
        self._batch_size = batch_size
        self._limit = limit
        self._pending: deque[PendingBatch] = deque()
        self._owes_batch = True
        self._exhausted = False
        self._error: Exception | None = None

    def has_room(self) -> bool:
        """Return whether to read and add the next batch."""
        if self._exhausted:
            return False
        return self._owes_batch or (len(self._pending) < self._limit and not self._pending[0].done())

    def read_batch(self) -> list[ImageSource]:
        """Read a batch from the input, an empty one at its end. This may block as long as the input does."""
        batch: list[ImageSource] = []
        try:
            for source in islice(self._sources, self._batch_size):
                batch.append(source)  # one by one, to keep what came before an error
        except Exception as error:
            self._error = error
        self._owes_batch = False
        self._exhausted = self._error is not None or len(batch) < self._batch_size
        return batch

    def add(self, pending: PendingBatch) -> None:
        """Add the batch that was read last."""
        self._pending.append(pending)

    def take_first(self) -> PendingBatch | None:
        """Remove and return the first batch; None, or the input's error, if all are taken and nothing follows."""
        if self._pending:
            self._owes_batch = True
            return self._pending.popleft()
        if self._error is not None:
            raise self._error
        return None

    def cancel(self) -> None:
        """Cancel all pending batches."""
        while self._pending:
            self._pending.pop().cancel()


@dataclass(eq=False)
class Prediction:
    """One `predict` call, with its arguments, and its batches. Its coroutines belong to one event loop."""

    transport: Transport
    readers: ReaderThreads
    file_names: FileNames
    batch_size: int
    threshold: Threshold | None
    on_error: OnError
    top_k: int | None
    concurrency: int | None
    array_format: ArrayFormat
    request_id: str | None

    def __post_init__(self) -> None:
        """Check the arguments, and note the current span.

        Raises:
            InvalidRequestError: An argument is not as described for `predict`.
        """
        check_count("batch_size", self.batch_size)
        check_count("top_k", 1 if self.top_k is None else self.top_k)
        check_count("concurrency", 1 if self.concurrency is None else self.concurrency, MAX_CONCURRENCY)
        for name, kind in (("on_error", OnError), ("array_format", ArrayFormat)):
            if getattr(self, name) not in get_args(kind):
                raise InvalidRequestError(
                    f"Expected {name} to be one of {get_args(kind)}, got {getattr(self, name)!r}."
                )
        self._threshold_json = encode_threshold(self.threshold)
        self._id = _check_request_id(self.request_id)
        self._trace = _read_trace_headers()
        # Of the batches that were read and not yet taken.
        self._held_bytes: dict[int, int] = {}
        self._first = 0
        self._was_taken = asyncio.Event()
        # All requests have the same threshold, so one that the server accepted proves it valid.
        self._accepted = False
        self._probing = asyncio.Lock()

    async def begin(self) -> None:
        """Find out how large the requests may be."""
        if self.batch_size > 1:
            self.batch_size = min(self.batch_size, await self.transport.max_batch_size())
        usual = max(2, min(_USUAL_CONCURRENCY, _USUAL_IMAGES_IN_FLIGHT // self.batch_size))
        concurrency = self.concurrency or usual
        self.window_limit = concurrency * _WINDOW_PER_REQUEST
        self._slots = asyncio.Semaphore(concurrency)

    async def answer(self, number: int, batch: Sequence[ImageSource]) -> list[MultiLabelResult]:
        """Read and send batch `number` (from 0); an image that cannot be read or is rejected fails alone.

        Raises:
            MlclsClientError: The request failed, for a reason other than its images.
        """
        async with self._slots:
            while number > self._first and sum(self._held_bytes.values()) >= _MAX_HELD_BYTES:
                await self._was_taken.wait()
            images = await self.readers.run(lambda: [_read(source) for source in batch])
            readable = [image for image in images if isinstance(image, bytes)]
            self._held_bytes[number] = sum(map(len, readable))
            answers = iter(await self._ask(readable, str(number)) if readable else [])
        results = []
        for source, image in zip(batch, images, strict=True):
            error: MlclsClientError | None = image if isinstance(image, InputError) else None
            answer = Answer("") if error is not None else next(answers)
            if error is None and answer.status != STATUS_OK:
                error = _rejected(source, answer.status)
                error.request_id = f"{self._id}-{number}"
            k = self.top_k
            best = Answer(answer.status, answer.class_ids[:k], answer.scores[:k], answer.label_names[:k])
            sent = image if isinstance(image, bytes) else b""
            place = (source.input_path, source.page_index)
            results.append(MultiLabelResult(best, *place, sent, error, self.file_names))
        return results

    def release(self) -> None:
        """Note that the results of the next batch were taken, so that others may be read."""
        del self._held_bytes[self._first]
        self._first += 1
        self._was_taken.set()
        self._was_taken = asyncio.Event()

    def sort_out(self, results: Sequence[MultiLabelResult]) -> Iterator[MultiLabelResult]:
        """Yield the results that the caller gets under `on_error`, or raise the error of the first that failed."""
        for result in results:
            if result.error is None or self.on_error == "yield":
                yield result
            elif self.on_error == "raise":
                raise result.error
            else:
                logger.warning("Skipped: %s", result.error)

    async def _infer(self, encoded_images: Sequence[bytes], name: str) -> list[Answer]:
        request_id = f"{self._id}-{name}"
        try:
            return await self.transport.infer(encoded_images, self._threshold_json, request_id, self._trace)
        except MlclsClientError as error:
            error.request_id = request_id
            raise

    async def _ask(self, encoded_images: Sequence[bytes], name: str) -> list[Answer]:
        """Return one answer per image, even if the server rejects some or all; `name` is for the request's id."""
        try:
            answers = await self._infer(encoded_images, name)
        except InvalidRequestError as error:
            # INVALID_ARGUMENT is about the images or the request, which the served contract leaves open. If the images
            # are bad, the server accepts a request with a good image and the same threshold.
            from PIL import Image

            async with self._probing:
                if not self._accepted:
                    good = encode_image(Image.new("RGB", (64, 64), (128, 128, 128)))
                    await self._infer([good], "probe")
                    self._accepted = True
            if len(encoded_images) == 1:
                return [Answer(status=error.server_text or error.args[0])]
            # The text of the rejected request does not tell which image is bad, and why.
            return [
                answer
                for index, image in enumerate(encoded_images)
                for answer in await self._ask([image], f"{name}.{index}")
            ]
        self._accepted = True
        return answers


def check_count(name: str, number: object, highest: float = math.inf) -> None:
    """Check that an argument is a whole number from 1 to `highest`, or raise InvalidRequestError."""
    if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= highest:
        wanted = "1 or more" if highest == math.inf else f"from 1 to {highest}"
        raise InvalidRequestError(f"Expected {name} to be {wanted}, got {number!r}.")


def _read(source: ImageSource) -> bytes | InputError:
    try:
        return source.read()
    except InputError as error:
        return error


def _rejected(source: ImageSource, reason: str) -> ImageRejectedError:
    name = "an image from memory" if source.input_path is None else repr(source.input_path)
    if source.page_index is not None:
        name = f"page {source.page_index} of {name}"
    return ImageRejectedError(
        f"The server has no result for {name}: {reason}", input_path=source.input_path, reason=reason
    )


def _check_request_id(request_id: str | None) -> str:
    """Return the prefix of the ids of one `predict` call, a random one for None."""
    if request_id is None:
        return secrets.token_hex(8)
    if not isinstance(request_id, str) or not _REQUEST_ID.fullmatch(request_id):
        raise InvalidRequestError(
            f"Expected request_id to be 1 to 100 printable ASCII characters without a space, got {request_id!r}."
        )
    return request_id


def _read_trace_headers() -> dict[str, str]:
    """Return the trace context of the caller's current OpenTelemetry span, if there is one."""
    carrier: dict[str, str] = {}
    if "opentelemetry.trace" in sys.modules:  # otherwise there is no span
        try:
            propagate: Any = importlib.import_module("opentelemetry.propagate")
            propagate.inject(carrier)
        except Exception:  # a misconfigured tracer must not fail a prediction
            carrier = {}
    return {name: carrier[name] for name in _TRACE_HEADERS if name in carrier}
