"""Measuring a candidate on a real server, without touching the user's repository, and the progress of the search."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from mlcls.base.files import held_folder, write_text
from mlcls.base.processes import end_with_parent
from mlcls.errors import ServerError
from mlcls.model.spec import ModelSpec
from mlcls.repository.configurations import render_files, write_files
from mlcls.repository.models import ModelVersion
from mlcls.repository.names import VERSION_FILE
from mlcls.repository.settings import ModelSettings, ServingSettings, Target, settings_path
from mlcls.server.installation import TritonInstallation
from mlcls.server.options import ServerOptions
from mlcls.server.process import TritonServer
from mlcls.tuning.closed_loop import LoopFigures, ensemble_calls, run_closed_loop
from mlcls.tuning.search import WARMUP_SHARE, Measure

# Cores per load process: a client needs far less processor time than the server it sends requests to.
_CORES_PER_PROCESS: Final = 8

# Sends requests to the gRPC API at `host:port` from a number of callers.
Load = Callable[[str, int], LoopFigures]


@contextlib.contextmanager
def start_load(spec: ModelSpec, images: Sequence[bytes], cores: int, window_s: float) -> Iterator[Load]:
    """Start processes that load a served ensemble, so that one Python process does not limit what many cores serve.

    Yield a function that runs a closed loop, in which the callers send encoded images in turn, and returns its figures.
    It raises ServerError if the server refuses or fails to answer a request, or a process ended.
    """
    process_count = max(cores // _CORES_PER_PROCESS, 1)
    # not forked: this process has threads
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(process_count, context, _initialize, (spec, images, window_s, os.getpid()))

    def load(url: str, concurrency: int) -> LoopFigures:
        count = min(process_count, concurrency)
        shares = [concurrency // count + (index < concurrency % count) for index in range(count)]
        try:
            latencies = list(pool.map(_run_share, [url] * count, shares))
        except BrokenExecutor:
            raise ServerError("A load process exited unexpectedly; is there enough memory?") from None
        return LoopFigures(concurrency, window_s, np.concatenate(latencies))

    try:
        list(pool.map(_wait_for_others, range(process_count)))  # so that no measurement includes their start
        yield load
    finally:
        pool.shutdown(cancel_futures=True)


_work: tuple[ModelSpec, Sequence[bytes], float]


def _initialize(spec: ModelSpec, images: Sequence[bytes], window_s: float, parent: int) -> None:
    global _work
    _work = spec, images, window_s
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent process
    end_with_parent(parent)


def _wait_for_others(_index: int) -> None:
    """Take long enough for each process of the pool to get one of these calls."""
    time.sleep(0.2)


def _run_share(url: str, concurrency: int) -> npt.NDArray[np.float64]:
    """Return the latencies in seconds; runs in a process of the pool."""
    spec, images, window_s = _work
    try:
        calls = ensemble_calls(url, spec, images)
        return run_closed_loop(calls, concurrency, window_s, window_s * WARMUP_SHARE).latencies_s
    except Exception as error:  # as an error that can be pickled
        raise ServerError(f"a request failed under load: {error}") from None


def measure_served(
    version: ModelVersion, target: Target, installation: TritonInstallation, load: Load, progress: Callable[[str], None]
) -> Measure:
    """Return a function that starts a tritonserver for each turn and loads it with one concurrency after another.

    A candidate's settings replace those of the target. `progress` is called with a text about each step.
    """
    current = version.repository.settings(version.name)

    def measure(settings: ServingSettings, concurrencies: Sequence[int]) -> dict[int, LoopFigures]:
        progress(f"{settings}: starting")
        turn = {}
        with candidate_repository(version, current.with_target(target, settings, None)) as folder:
            options = dataclasses.replace(ServerOptions.on_free_ports(folder, version.name), target=target)
            server = TritonServer(options, installation).start()
            try:
                for concurrency in concurrencies:
                    progress(f"{settings}: concurrency {concurrency}")
                    turn[concurrency] = load(server.grpc_url, concurrency)
            finally:
                server.kill()  # nobody else uses it, and Triton takes longer to stop than to start
        progress(f"{settings}: measured")
        return turn

    return measure


@contextlib.contextmanager
def candidate_repository(version: ModelVersion, settings: ModelSettings) -> Iterator[Path]:
    """Yield a temporary repository with the active version of one model and other settings.

    Its configurations are new; its version folders are links to those of the model repository.
    """
    with held_folder(Path(tempfile.gettempdir()), "mlcls-tune-") as temporary:
        folder = temporary / "models"
        write_text(settings_path(folder, version.name), settings.to_json())
        write_files(folder, render_files(version.spec, version.number, settings))
        for suffix, step in version.folders.items():
            os.symlink(step.resolve(), folder / version.step(suffix) / step.name)
        ensemble = folder / version.name / str(version.number)
        ensemble.mkdir(exist_ok=True)
        record = version.folder / VERSION_FILE
        if record.is_file():
            shutil.copyfile(record, ensemble / VERSION_FILE)
        yield folder


@contextlib.contextmanager
def show_progress(budget_s: float) -> Iterator[Callable[[str], None]]:
    """Show a progress bar of the time, unless tqdm is not installed, as in the serving image.

    Yield a function to call with a text about each step.
    """
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        yield lambda _text: None
        return
    began = time.monotonic()
    bar_format = "{desc} {percentage:3.0f}%|{bar}| {remaining} left {postfix}"
    with tqdm(total=budget_s, desc="tune", bar_format=bar_format, leave=False, disable=None) as bar:

        def tell(text: str) -> None:
            bar.set_postfix_str(text, refresh=False)
            bar.n = min(time.monotonic() - began, budget_s)
            bar.refresh()

        yield tell
