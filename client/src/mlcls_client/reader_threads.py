"""Threads for what blocks: reading files, fetching URLs, rendering pages, encoding arrays."""

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

Returned = TypeVar("Returned")

_Job = tuple[Callable[[], Any], asyncio.AbstractEventLoop, "asyncio.Future[Any]"]


class ReaderThreads:
    """Up to so many threads, started when all others are busy.

    Not `ThreadPoolExecutor`: the interpreter waits for its threads at exit, so that Ctrl-C during the fetch of a URL
    would take effect when the fetch is over.
    """

    def __init__(self, limit: int) -> None:
        """Make a pool of at most `limit` threads; none is started yet."""
        self._limit = limit
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._started = 0
        self._free = 0
        self._closed = False

    async def run(self, call: Callable[[], Returned]) -> Returned:
        """Return what a call returns or raise what it raises; cancelling leaves the call to itself."""
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[Returned] = loop.create_future()
        with self._lock:
            if self._free <= 0 and self._started < self._limit:
                self._started += 1
                threading.Thread(target=self._work, name="mlcls-client-reader", daemon=True).start()
            else:
                self._free -= 1
        self._jobs.put((call, loop, outcome))
        return await outcome

    def close(self) -> None:
        """Let the threads end once they have done what they are doing."""
        with self._lock:
            if not self._closed:
                self._closed = True
                for _ in range(self._started):
                    self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            call, loop, outcome = job
            value, error = None, None
            if not outcome.cancelled():
                try:
                    value = call()
                except Exception as raised:
                    error = raised
            with self._lock:
                self._free += 1
            with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
                loop.call_soon_threadsafe(_settle, outcome, value, error)
            del job, call, outcome, value, error  # a waiting thread must not keep an image


def _settle(outcome: "asyncio.Future[Any]", value: object, error: Exception | None) -> None:
    if outcome.done():
        return
    if error is not None:
        outcome.set_exception(error)
    else:
        outcome.set_result(value)
