"""The event loop behind `Model`: one thread for all models of a process, so that blocking calls can overlap requests.

The caller's own thread would not do: it may run an event loop already (a notebook does), and between two results it
belongs to the caller, while requests have to go on.
"""

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

from mlcls_client.errors import MlclsClientError

Returned = TypeVar("Returned")


class LoopThread:
    """An event loop that runs in a daemon thread until the process ends.

    Examples:
        >>> loop = shared_loop()
        >>> async def add(one, two):
        ...     return one + two
        >>> loop.run(add(1, 2))
        3
    """

    def __init__(self) -> None:
        """Start the thread."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="mlcls-client", daemon=True)
        self._thread.start()

    def is_running(self) -> bool:
        """Tell whether the thread is there; in a forked child it is not."""
        return self._thread.is_alive()

    def submit(self, work: Coroutine[Any, Any, Returned]) -> "Future[Returned]":
        """Start a coroutine; cancelling the future cancels it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def call(self, function: Callable[..., object], *args: object) -> None:
        """Call a function in the loop's thread, soon."""
        self._loop.call_soon_threadsafe(function, *args)

    def run(self, work: Coroutine[Any, Any, Returned]) -> Returned:
        """Run a coroutine to its end; what interrupts the wait (Ctrl-C) cancels it."""
        if threading.current_thread() is self._thread:
            work.close()
            raise MlclsClientError("a Model cannot be called from a callback of its own loop; use AsyncModel there")
        return wait_for(self.submit(work))


def wait_for(future: "Future[Returned]") -> Returned:
    """Return what a future gives; what interrupts the wait cancels it.

    Raises:
        MlclsClientError: The work was cancelled, because the model was closed.
    """
    try:
        return future.result()
    except CancelledError:
        raise MlclsClientError("the model was closed while its requests were under way") from None
    except BaseException:
        future.cancel()
        raise


_lock = threading.Lock()
_shared: LoopThread | None = None


def shared_loop() -> LoopThread:
    """Return the loop that all models of this process share; the first call starts it."""
    global _shared
    with _lock:
        if _shared is None:
            _shared = LoopThread()
        return _shared


def _forget_after_fork() -> None:
    # A forked child has the object and not the thread.
    global _shared, _lock
    _shared, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget_after_fork)
