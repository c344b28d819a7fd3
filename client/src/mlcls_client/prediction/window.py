"""The pending batches of a prediction: a bounded window of the input, answered in order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from itertools import islice
from typing import Any, Generic, TypeVar

from mlcls_client.inputs.sources import ImageSource

PendingBatch = TypeVar("PendingBatch", "Future[Any]", "asyncio.Task[Any]")


class Window(Generic[PendingBatch]):
    """The batches between the input and the results that were taken.

    For each result that is taken, one batch is read from the input. More are read as long as the next result is not
    there, until `limit` batches are pending. So the window fills up if the server is slow, and a slow input (a camera)
    never delays an answer by more than one batch.
    """

    def __init__(self, sources: Iterator[ImageSource], batch_size: int, limit: int) -> None:
        """Make an empty window of at most `limit` batches: waiting, sent, or answered and not yet taken."""
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


class MemoryGate:
    """A pause of reading while images that were read and not yet taken hold too much memory; for one event loop."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._held_bytes: dict[int, int] = {}
        self._first = 0
        self._changed = asyncio.Event()

    async def pass_through(self, number: int) -> None:
        """Wait until batch `number` may be read. The batch that will be taken next never waits."""
        while number > self._first and sum(self._held_bytes.values()) >= self._limit_bytes:
            await self._changed.wait()

    def hold(self, number: int, size_bytes: int) -> None:
        """Note how large batch `number` is."""
        if number >= self._first:
            self._held_bytes[number] = size_bytes

    def release(self, number: int) -> None:
        """Note that batch `number` was taken."""
        self._held_bytes.pop(number, None)
        self._first = number + 1
        self._changed.set()
        self._changed = asyncio.Event()
