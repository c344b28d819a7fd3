"""Which batches of a prediction are under way: a bounded stretch of the input, answered in its order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Any, Generic, Protocol, TypeVar

from mlcls_client.inputs.sources import ImageSource


class Pending(Protocol):
    """What `Window` needs of the futures of asyncio and of threads."""

    def done(self) -> bool:
        """Tell whether there is an answer."""
        ...

    def cancel(self) -> Any:
        """Stop what leads to the answer."""
        ...


PendingBatch = TypeVar("PendingBatch", bound=Pending)


class Window(Generic[PendingBatch]):
    """The batches between the input and the results that were taken.

    For each result that is taken, one batch is read from the input; more than one while the next result is not there
    anyway, until `limit` batches are under way. So the window fills up when the server is the slow one, and an input
    that is slow itself (a camera) holds back an answer for as long as one batch takes to come, and no longer.
    """

    def __init__(self, sources: Iterator[ImageSource], batch_size: int, limit: int) -> None:
        """Make an empty window.

        Args:
            sources: The input; errors that it raises come after the results of what it gave before.
            batch_size: Images per batch.
            limit: Batches under way, at most: waiting, sent, or answered and not yet taken.
        """
        self._sources = sources
        self._batch_size = batch_size
        self._limit = limit
        self._pending: deque[PendingBatch] = deque()
        self._owes_batch = True
        self._exhausted = False
        self._error: Exception | None = None

    def has_room(self) -> bool:
        """Tell whether the next batch is to be read and added."""
        if self._exhausted:
            return False
        return self._owes_batch or (len(self._pending) < self._limit and not self._pending[0].done())

    def read_batch(self) -> list[ImageSource]:
        """Take a batch from the input; an empty one at its end. It may block as long as the input does."""
        batch: list[ImageSource] = []
        try:
            for source in islice(self._sources, self._batch_size):
                batch.append(source)  # one by one: what came before an error stays
        except Exception as error:
            self._error = error
        self._owes_batch = False
        self._exhausted = self._error is not None or len(batch) < self._batch_size
        return batch

    def add(self, pending: PendingBatch) -> None:
        """Add the batch that was read last."""
        self._pending.append(pending)

    def take_first(self) -> PendingBatch | None:
        """Remove and return the first batch; None where all are answered and the input is at its end.

        Raises:
            Exception: What the input raised.
        """
        if self._pending:
            self._owes_batch = True
            return self._pending.popleft()
        if self._error is not None:
            raise self._error
        return None

    def cancel(self) -> None:
        """Stop all that is under way."""
        while self._pending:
            self._pending.pop().cancel()


class MemoryGate:
    """Holds back the reading of images while those that were read and not taken are large; for one event loop."""

    def __init__(self, limit_bytes: int) -> None:
        """Make a gate that is open while less than `limit_bytes` are held."""
        self._limit_bytes = limit_bytes
        self._held_bytes: dict[int, int] = {}
        self._first = 0
        self._changed = asyncio.Event()

    async def pass_through(self, number: int) -> None:
        """Wait until batch `number` may be read; the batch that is to be taken next never waits."""
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
