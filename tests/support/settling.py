"""Read a server's counts, which lag a little behind what it does."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def read_settled(read: Callable[[], T], pause_s: float, key: Callable[[T], object] = lambda value: value) -> T:
    """Return what `read` returns once it is the same, by `key`, as one pause earlier."""
    before = read()
    while True:
        time.sleep(pause_s)
        now = read()
        if key(now) == key(before):
            return now
        before = now
