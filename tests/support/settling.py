"""Wait for a server: until something holds, or until its counts, which lag behind what it does, stand still."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_for(read: Callable[[], T], timeout_s: float = 20.0, failure: Callable[[], object] = lambda: "too late") -> T:
    """Return what `read` returns once that is true."""
    deadline = time.monotonic() + timeout_s
    while not (value := read()):
        assert time.monotonic() < deadline, failure()
        time.sleep(0.02)
    return value


def read_settled(read: Callable[[], T], pause_s: float, key: Callable[[T], object] = lambda value: value) -> T:
    """Return what `read` returns once it is the same, by `key`, as one pause earlier."""
    before = read()
    while True:
        time.sleep(pause_s)
        now = read()
        if key(now) == key(before):
            return now
        before = now
