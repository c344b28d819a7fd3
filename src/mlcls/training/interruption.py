"""Ctrl-C and SIGTERM end a training after the step in progress, with a checkpoint."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Final

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Notes signals while its `with` block runs; outside the main thread it notes none.

    Attributes:
        signal_number: The first signal that came; None while there was none.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def requested(self) -> bool:
        """Whether a signal came."""
        return self.signal_number is not None

    def _note(self, number: int, _frame: FrameType | None) -> None:
        # a second Ctrl-C is meant; SIGTERM is sent several times by paddle's launcher
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal_number = number
