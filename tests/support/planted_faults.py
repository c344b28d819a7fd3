"""A fault that the gate must detect, planted into a runner."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, cast

from mlcls.engines.runners import ImageRunner, Scores


class SwappingRunner:
    """A runner that answers single requests correctly, but swaps the answers of two concurrent ones."""

    def __init__(self, runner: ImageRunner) -> None:
        self.name = runner.name
        self.labels = runner.labels
        self.concurrency = 8
        self._runner = runner
        self._lock = threading.Lock()
        self._waiting: dict[str, Any] | None = None

    def scores(self, images: Sequence[bytes]) -> Scores:
        own = self._runner.scores(images)
        if threading.current_thread() is threading.main_thread():
            return own
        with self._lock:
            first = self._waiting is None
            pair = self._waiting = self._waiting or {"done": threading.Event()}
            pair["first" if first else "second"] = own
            if not first:
                self._waiting = None
                pair["done"].set()
        assert pair["done"].wait(30)
        return cast(Scores, pair["second" if first else "first"])
