"""`create_async_model` and `AsyncModel`: prediction on asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, Final

from mlcls_client.base.files import FileNames
from mlcls_client.base.text import end_sentence
from mlcls_client.base.threads import ReaderThreads
from mlcls_client.errors import MlclsClientError, ServerUnavailableError
from mlcls_client.inputs.encoding import ArrayFormat
from mlcls_client.inputs.fetch import DEFAULT_FETCH_LIMITS, FetchLimits
from mlcls_client.inputs.sources import ImageInput, ImageSource, iterate_sources
from mlcls_client.prediction import MAX_CONCURRENCY, OnError, Prediction, Window, check_count
from mlcls_client.result import MultiLabelResult
from mlcls_client.transport.connection import (
    DEFAULT_RETRIES,
    DEFAULT_TIMEOUT_S,
    Connection,
    Ssl,
    read_connection,
)
from mlcls_client.transport.contract import Threshold, encode_threshold
from mlcls_client.transport.transports import Transport

_POLL_INTERVAL_S: Final = 0.25


def create_async_model(
    model_name: str,
    url: str | None = None,
    protocol: str = "grpc",
    timeout_s: float = DEFAULT_TIMEOUT_S,
    *,
    ssl: Ssl = False,
    headers: Mapping[str, str] | None = None,
    api_key: str | None = None,
    retries: int = DEFAULT_RETRIES,
    admin_key: str | None = None,
    shared_memory: bool = False,
    threshold: Threshold | None = None,
    batch_size: int = 1,
    model_dir: str | os.PathLike[str] | None = None,
    **paddlex_options: Any,
) -> AsyncModel:
    """Make a model for one event loop. Arguments and errors are those of `create_model`.

    Examples:
        >>> async def main():
        ...     async with create_async_model("PP-LCNet_x1_0_ML", url=server.url) as model:
        ...         return [res.label_names async for res in model.predict(["photo.png", "photos/"])]
        >>> asyncio.run(main())
        [['red'], ['green'], ['blue']]
    """
    options = (ssl, headers, api_key, retries, admin_key, shared_memory, model_dir, paddlex_options)
    return AsyncModel(read_connection(model_name, url, protocol, timeout_s, *options), batch_size, threshold)


class AsyncModel:
    """One model on one server, for one event loop. An async context manager.

    Examples:
        >>> async def main():
        ...     async with create_async_model("PP-LCNet_x1_0_ML", url=server.url) as model:
        ...         await model.wait_until_ready(timeout_s=10)
        ...         async for res in model.predict("photo.png", threshold=0.1, top_k=1):
        ...             res.print()
        >>> asyncio.run(main())
        {'res': {'input_path': 'photo.png', 'page_index': None, 'class_ids': [0], 'scores': [0.78431], 'label_names': ['red']}}
    """  # noqa: E501

    def __init__(self, connection: Connection, batch_size: int = 1, threshold: Threshold | None = None) -> None:
        """Make a model on a connection; `create_async_model` is the usual way."""
        check_count("batch_size", batch_size)
        encode_threshold(threshold)
        self._batch_size, self._threshold = batch_size, threshold
        self._transport = Transport(connection)
        self._readers = ReaderThreads(MAX_CONCURRENCY)
        self._file_names = FileNames()
        self._under_way: set[asyncio.Task[Any]] = set()
        self._process_id = os.getpid()
        self._closed = False

    @property
    def model_name(self) -> str:
        """Name of the ensemble."""
        return self._transport.connection.model_name

    def predict(
        self,
        input: ImageInput,
        batch_size: int | None = None,
        threshold: Threshold | None = None,
        on_error: OnError = "raise",
        *,
        top_k: int | None = None,
        concurrency: int | None = None,
        fetch_limits: FetchLimits = DEFAULT_FETCH_LIMITS,
        array_format: ArrayFormat = "png",
        request_id: str | None = None,
    ) -> AsyncIterator[MultiLabelResult]:
        """Predict the labels of images: an async generator that yields one result per image or page, in order.

        Arguments, results and errors are those of `Model.predict`. An iterable is consumed in other threads, one item
        at a time. A generator that is left early (`break`) cancels its requests when it is closed: at once with
        `contextlib.aclosing`, otherwise when Python collects it.
        """
        prediction = self.prepare(batch_size, threshold, on_error, top_k, concurrency, array_format, request_id)
        return self._predict(iterate_sources(input, fetch_limits, array_format), prediction)

    __call__ = predict

    async def _predict(self, sources: Iterator[ImageSource], prediction: Prediction) -> AsyncIterator[MultiLabelResult]:
        await prediction.begin()
        window: Window[asyncio.Task[Any]] = Window(sources, prediction.batch_size, prediction.window_limit)
        sent = 0
        try:
            while True:
                while window.has_room():
                    if batch := await self._readers.run(window.read_batch):
                        task = asyncio.ensure_future(self.answer(prediction, sent, batch))
                        # A failure that nobody waits for is not reported.
                        task.add_done_callback(lambda done: done.cancelled() or done.exception())
                        window.add(task)
                        sent += 1
                first = window.take_first()
                if first is None:
                    return
                try:
                    results = await first
                except asyncio.CancelledError:
                    self.check_open()  # closing the model cancels only the task; otherwise the caller was canceled
                    first.cancel()
                    raise
                prediction.release()
                for result in prediction.sort_out(results):
                    yield result
                    self.check_open()
        finally:
            window.cancel()

    def prepare(self, batch_size: int | None, threshold: Threshold | None, *options: Any) -> Prediction:
        """Check the options of `predict`, which are those of `Prediction`; None stands for the model's.

        Raises:
            MlclsClientError: The model cannot be used any more.
            InvalidRequestError: An argument is not as described.
        """
        self.check_open()
        batch_size = self._batch_size if batch_size is None else batch_size
        threshold = self._threshold if threshold is None else threshold
        return Prediction(self._transport, self._readers, self._file_names, batch_size, threshold, *options)

    async def answer(self, prediction: Prediction, number: int, batch: list[ImageSource]) -> list[MultiLabelResult]:
        """Answer one batch like `Prediction.answer`, in a task that `close` cancels."""
        self.check_open()
        task = asyncio.current_task()
        if task is not None:
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)
        return await prediction.answer(number, batch)

    async def is_ready(self) -> bool:
        """Return whether the server answers and the model is ready."""
        self.check_open()
        self._transport.check_usable()
        try:
            return await self._transport.is_ready()
        except MlclsClientError:
            return False

    async def wait_until_ready(self, timeout_s: float) -> None:
        """Wait like `Model.wait_until_ready`."""
        self.check_open()
        self._transport.check_usable()
        deadline = time.monotonic() + timeout_s
        while True:
            reason = "the server answers, but the model is not loaded or not ready"
            try:
                if await self._transport.is_ready():
                    return
            except MlclsClientError as error:
                reason = error.server_text or str(error)
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0:
                raise ServerUnavailableError(
                    f"Expected model {self.model_name!r} at {self._transport.connection.url} to be ready within "
                    f"{timeout_s:g} s: {end_sentence(reason)} Check the address, the protocol and the server's log."
                )
            await asyncio.sleep(min(_POLL_INTERVAL_S, remaining_s))

    async def close(self) -> None:
        """Cancel what is in flight and close the connection; a second call does nothing."""
        if self._closed or os.getpid() != self._process_id:
            return
        self._closed = True
        for task in list(self._under_way):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*self._under_way, return_exceptions=True)
        self._readers.close()
        await self._transport.close()

    def check_open(self) -> None:
        """Check that the model can still be used.

        Raises:
            MlclsClientError: It is closed, or was made before this process was forked.
        """
        if self._closed:
            raise MlclsClientError(f"Model {self.model_name!r} is closed; make a new one with create_model.")
        if os.getpid() != self._process_id:
            raise MlclsClientError(
                f"Model {self.model_name!r} was made before this process was forked, and its connection belongs to the "
                "parent; make a new one with create_model."
            )

    async def __aenter__(self) -> AsyncModel:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()
