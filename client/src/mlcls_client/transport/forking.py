"""A fork of the process while gRPC is in use.

gRPC's state survives a fork only if no thread is inside gRPC at that moment, and the thread that gRPC starts for
asyncio is inside as long as a channel is open. So all channels are closed before a fork and opened again by the next
request; requests in flight are sent again. A child that would inherit a broken gRPC nevertheless, because the program
uses gRPC itself, refuses to use it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import importlib
import os
import sys
import threading
import time
import traceback
import weakref
from typing import Final, Protocol

from mlcls_client.errors import MlclsClientError

_HOLD_TIMEOUT_S: Final = 10.0
_POLLER_TIMEOUT_S: Final = 0.5
_IN_USE: Final = "while its parent was using gRPC"
_UNSUPPORTED: Final = "by a parent that uses gRPC and has GRPC_ENABLE_FORK_SUPPORT=0"
# The thread of `grpc.aio`, which has no Python frame; its name is that of its function.
_POLLER: Final = "_poll_wrapper"


class Connected(Protocol):
    """What is connected to a server, on one event loop."""

    loop: asyncio.AbstractEventLoop | None
    in_flight: int

    @property
    def has_channel(self) -> bool:
        """Whether gRPC has an open channel for it."""

    async def suspend(self) -> None:
        """Close the channel without waiting; its requests in flight end, and are sent again later."""


_connected: weakref.WeakSet[Connected] = weakref.WeakSet()
_loops: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()
_fork = threading.local()
_why_broken = ""


def watch(connected: Connected) -> None:
    """Prepare this for each fork from now on."""
    _connected.add(connected)
    if connected.loop is not None:
        _loops.add(connected.loop)
    if connected.has_channel:
        _keep_initialized()


@functools.cache
def _keep_initialized() -> object:
    """Return a channel that never connects. Without any, gRPC ends itself in threads, which a fork would cut off."""
    return importlib.import_module("grpc").insecure_channel("127.0.0.1:9")


def check_grpc() -> None:
    """Check that this process can use gRPC.

    Raises:
        MlclsClientError: gRPC did not survive the fork that made this process.
    """
    if _why_broken:
        raise MlclsClientError(
            f"This process was forked {_why_broken}, so it cannot use gRPC. Start it with the method 'spawn' or "
            "'forkserver' (multiprocessing, DataLoader), fork before the parent uses gRPC, or pass protocol='http'."
        )


def _before_fork() -> None:
    _fork.ended, _fork.damage = threading.Event(), _IN_USE
    for loop in list(_loops):
        if loop.is_running() and _running_loop() is not loop:
            _hold(loop, _fork.ended)
        else:
            for connected in _connected_on(loop):
                with contextlib.suppress(Exception):
                    connected.suspend().send(None)  # runs to its end, since it never waits
    deadline = time.monotonic() + _POLLER_TIMEOUT_S
    while (is_busy := _is_grpc_busy()) and _loops and time.monotonic() < deadline:
        time.sleep(0.001)
    if not is_busy:
        _fork.damage = _UNSUPPORTED if "grpc" in sys.modules and not _supports_forks() else ""


def _hold(loop: asyncio.AbstractEventLoop, fork_ended: threading.Event) -> None:
    """Close the channels of a loop in another thread, and stop this loop until the fork has ended."""
    closed = threading.Event()

    async def close_and_wait() -> None:
        while (open_ones := _connected_on(loop)) and any(one.has_channel or one.in_flight for one in open_ones):
            for connected in open_ones:
                await connected.suspend()
            del connected
            await asyncio.sleep(0)
        closed.set()
        fork_ended.wait()

    asyncio.run_coroutine_threadsafe(close_and_wait(), loop)
    closed.wait(_HOLD_TIMEOUT_S)


def _connected_on(loop: asyncio.AbstractEventLoop) -> list[Connected]:
    return [connected for connected in list(_connected) if connected.loop is loop]


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _is_grpc_busy() -> bool:
    """Return whether any thread is inside gRPC, for this client or another user of gRPC."""
    if "grpc" not in sys.modules:
        return False
    if any(_POLLER in thread.name for thread in threading.enumerate()):
        return True
    own_id = threading.get_ident()
    frames = [frame for thread_id, frame in sys._current_frames().items() if thread_id != own_id]
    return any(
        called.f_globals.get("__name__", "").partition(".")[0] == "grpc"
        for frame in frames
        for called, _ in traceback.walk_stack(frame)
    )


def _supports_forks() -> bool:
    return os.environ.get("GRPC_ENABLE_FORK_SUPPORT", "1").lower() not in ("0", "f", "false", "n", "no", "off")


def _after_fork_in_child() -> None:
    global _why_broken
    _why_broken = _why_broken or _fork.damage
    for inherited in (*_connected, *_loops):
        # Never freed, not even at the end: their last acts would be about the parent's threads and connections.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(inherited))
    _connected.clear()
    _loops.clear()


os.register_at_fork(
    before=_before_fork,
    after_in_parent=lambda: _fork.ended.set(),
    after_in_child=_after_fork_in_child,
)
