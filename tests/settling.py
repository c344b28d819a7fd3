"""Reading a server's counts, which follow what it does a moment later."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def read_settled(read: Callable[[], T], pause_s: float, key: Callable[[T], object] = lambda value: value) -> T:
    """What `read` gives once it gives the same, by `key`, as a pause before."""
    before = read()
    while True:
        time.sleep(pause_s)
        now = read()
        if key(now) == key(before):
            return now
        before = now
