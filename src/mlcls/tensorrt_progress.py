"""The progress of a TensorRT build on a terminal."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any


@contextlib.contextmanager
def show_progress(module: ModuleType, config: Any) -> Iterator[Any]:
    """Shows the library's outermost phase, and has it end the build at its next step when Ctrl-C was pressed.

    Args:
        module: `tensorrt` or `tensorrt_rtx`.
        config: The build's `IBuilderConfig`.

    Yields:
        The monitor; its `interrupted` tells whether Ctrl-C was pressed.
    """
    monitor = _make_monitor(module)
    config.progress_monitor = monitor
    in_main_thread = threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGINT, monitor.interrupt) if in_main_thread else None
    try:
        yield monitor
    finally:
        monitor.close()
        if in_main_thread:
            signal.signal(signal.SIGINT, previous)


def _make_monitor(module: ModuleType) -> Any:
    from tqdm import tqdm

    class Monitor(module.IProgressMonitor):  # type: ignore[misc, name-defined]
        """The library calls this from its own threads; an exception there would end the process."""

        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)
            self.interrupted = False
            self._bar: Any = None
            self._outermost = ""
            self._lock = threading.Lock()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self._lock:
                if self._bar is None:
                    self._outermost = phase_name
                    # on a terminal only
                    self._bar = tqdm(total=num_steps, desc="building", unit="step", leave=False, disable=None)
                else:
                    self._bar.set_postfix_str(phase_name[:40])

        def step_complete(self, phase_name: str, step: int) -> bool:
            with self._lock:
                if self._bar is not None and phase_name == self._outermost:
                    self._bar.update(max(0, step + 1 - self._bar.n))
            return not self.interrupted

        def phase_finish(self, phase_name: str) -> None:
            if phase_name == self._outermost:
                self.close()

        def close(self) -> None:
            with self._lock:
                if self._bar is not None:
                    self._bar.close()

        def interrupt(self, _signum: int, _frame: object) -> None:
            self.interrupted = True

    return Monitor()
