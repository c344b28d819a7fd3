"""Threads: the event loop behind `Model`, and the readers of files, URLs, pages and arrays.

All models of a process share one loop, so that blocking calls can overlap requests. The caller's own thread would not
do: it may already run an event loop (a notebook does), and requests must go on between two results.
"""

from __future__ import annotations

import asyncio
import functools
import os
import queue
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

from mlcls_client.errors import MlclsClientError

Returned = TypeVar("Returned")


class LoopThread:
    """An event loop that runs in a daemon thread until the process ends."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="mlcls-client", daemon=True)
        self._thread.start()

    def is_running(self) -> bool:
        """Return whether the thread is there; in a forked child it is not."""
        return self._thread.is_alive()

    def submit(self, work: Coroutine[Any, Any, Returned]) -> Future[Returned]:
        """Start a coroutine; cancelling the future cancels it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def call(self, function: Callable[..., object], *args: object) -> None:
        """Schedule a call of a function in the loop's thread."""
        self._loop.call_soon_threadsafe(function, *args)

    def run(self, work: Coroutine[Any, Any, Returned]) -> Returned:
        """Run a coroutine to its end; an interrupt of the wait (Ctrl-C) cancels it."""
        if threading.current_thread() is self._thread:
            work.close()
            raise MlclsClientError("A Model cannot be called from a callback of its own loop; use AsyncModel there.")
        return wait_for(self.submit(work))


def wait_for(future: Future[Returned]) -> Returned:
    """Return the result of a future; an interrupt of the wait cancels it, and a closed model is an MlclsClientError."""
    try:
        return future.result()
    except CancelledError:
        raise MlclsClientError("The model was closed while its requests were in flight.") from None
    except BaseException:
        future.cancel()
        raise


@functools.cache
def shared_loop() -> LoopThread:
    """Return the loop that all models of this process share; the first call starts it."""
    return LoopThread()


# A forked child has the object and not the thread.
os.register_at_fork(after_in_child=shared_loop.cache_clear)


class ReaderThreads:
    """A pool of at most `limit` threads for blocking calls. A thread is started if all others are busy.

    Not `ThreadPoolExecutor`: the interpreter waits for its threads at exit, so Ctrl-C during the fetch of a URL would
    take effect only after the fetch.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._started = 0

    async def run(self, call: Callable[[], Returned]) -> Returned:
        """Return what a call returns or raise what it raises. Cancelling does not stop the call."""
        outcome: Future[Returned] = Future()
        self._jobs.put((call, outcome))
        if not self._idle.acquire(blocking=False) and self._started < self._limit:
            self._started += 1
            threading.Thread(target=self._work, name="mlcls-client-reader", daemon=True).start()
        return await asyncio.wrap_future(outcome)

    def close(self) -> None:
        """Let the threads end after their current call."""
        for _ in range(self._started):
            self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            call, outcome = job
            if outcome.set_running_or_notify_cancel():
                try:
                    outcome.set_result(call())
                except Exception as error:
                    outcome.set_exception(error)
            del job, call, outcome  # a waiting thread must not keep an image
            self._idle.release()
