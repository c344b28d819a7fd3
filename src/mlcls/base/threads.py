"""Work that threads do ahead of the one who needs it."""

from __future__ import annotations

import collections
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_Item = TypeVar("_Item")
_Done = TypeVar("_Done")


def map_ahead(
    pool: ThreadPoolExecutor, function: Callable[[_Item], _Done], items: Iterable[_Item], ahead: int
) -> Generator[_Done, None, None]:
    """Yield a function's result for each item, in order, with at most `ahead` calls waiting, running or done."""
    waiting: collections.deque[Future[_Done]] = collections.deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
