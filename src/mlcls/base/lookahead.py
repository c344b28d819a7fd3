"""Work in threads, a little ahead of what is taken, so that memory stays bounded."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

_Item = TypeVar("_Item")
_Done = TypeVar("_Done")


def map_ahead(
    executor: Executor, function: Callable[[_Item], _Done], items: Iterable[_Item], ahead: int
) -> Iterator[_Done]:
    """Yield a function's result for each item, in order, with at most `ahead` calls waiting, running or done."""
    source = iter(items)
    waiting: collections.deque[Future[_Done]] = collections.deque()
    try:
        while True:
            waiting.extend(executor.submit(function, item) for item in itertools.islice(source, ahead - len(waiting)))
            if not waiting:
                return
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
