"""A closed loop of load in several processes, so that one Python process does not limit what many cores serve."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from types import TracebackType
from typing import Final

import numpy as np
import numpy.typing as npt

from mlcls.base.processes import end_with_parent
from mlcls.errors import ServerError
from mlcls.model.spec import ModelSpec
from mlcls.tuning.closed_loop import LoopFigures, ensemble_calls, run_closed_loop

# Cores per load process: a client needs far less processor time than the server it sends requests to.
_CORES_PER_PROCESS: Final = 8


class LoadProcesses:
    """Processes that send requests to a served ensemble; a context manager that ends them."""

    def __init__(self, spec: ModelSpec, images: Sequence[bytes], cores: int) -> None:
        """Start nothing yet.

        Args:
            spec: The served model's spec.
            images: Encoded images; the callers send them in turn.
            cores: Cores of the machine.
        """
        self._count = max(cores // _CORES_PER_PROCESS, 1)
        # not forked: this process has threads
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(self._count, context, _initialize, (spec, tuple(images)))

    def __enter__(self) -> LoadProcesses:
        """Wait until the processes are ready, so that no measurement includes their start."""
        list(self._pool.map(_wait_for_others, range(self._count)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the processes once the current load has ended."""
        self._pool.shutdown(cancel_futures=True)

    def run(self, url: str, concurrency: int, window_s: float, warmup_s: float) -> LoopFigures:
        """Run a closed loop.

        Args:
            url: `host:port` of the gRPC API.
            concurrency: Number of callers, divided among the processes.
            window_s: How long to measure.
            warmup_s: How long to run before measuring.

        Raises:
            ServerError: The server refused or failed to answer a request, or a process ended.
        """
        count = min(self._count, concurrency)
        shares = [concurrency // count + (index < concurrency % count) for index in range(count)]
        try:
            futures = [self._pool.submit(_run_share, url, share, window_s, warmup_s) for share in shares]
            latencies = [future.result() for future in futures]
        except BrokenExecutor:
            raise ServerError("A load process exited unexpectedly; is there enough memory?") from None
        return LoopFigures(concurrency, window_s, np.concatenate(latencies))


_spec: ModelSpec
_images: tuple[bytes, ...]


def _initialize(spec: ModelSpec, images: tuple[bytes, ...]) -> None:
    global _spec, _images
    _spec, _images = spec, images
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent process
    end_with_parent()


def _wait_for_others(_index: int) -> None:
    """Take long enough for each process of the pool to get one of these calls."""
    time.sleep(0.2)


def _run_share(url: str, concurrency: int, window_s: float, warmup_s: float) -> npt.NDArray[np.float64]:
    """Return the latencies in seconds; runs in a process of the pool."""
    try:
        return run_closed_loop(ensemble_calls(url, _spec, _images), concurrency, window_s, warmup_s).latencies_s
    except Exception as error:  # as an error that can be pickled
        raise ServerError(f"a request failed under load: {error}") from None
