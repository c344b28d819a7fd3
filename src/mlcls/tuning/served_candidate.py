"""Measuring a candidate on a real server, without touching the user's repository, and the progress of the search."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mlcls.base.files import write_text
from mlcls.repository.configurations import render_files, write_files
from mlcls.repository.models import ModelVersion
from mlcls.repository.names import VERSION_FILE
from mlcls.repository.settings import ModelSettings, ServingSettings, Target, settings_path
from mlcls.server.installation import TritonInstallation
from mlcls.server.options import ServerOptions
from mlcls.server.process import TritonServer
from mlcls.tuning.closed_loop import LoopFigures
from mlcls.tuning.load_processes import LoadProcesses
from mlcls.tuning.search import WARMUP_SHARE

Progress = Callable[[str], None]


class ServedMeasure:
    """Measures settings: starts a tritonserver for each turn and loads it with one concurrency after another."""

    def __init__(
        self,
        version: ModelVersion,
        target: Target,
        installation: TritonInstallation,
        load: LoadProcesses,
        window_s: float,
        progress: Progress,
    ) -> None:
        """Read the model's settings; a candidate's replace those of the target.

        Args:
            version: The active version of a model, which is measured.
            target: The engine.
            installation: The tritonserver.
            load: The processes that load the server.
            window_s: How long to measure each concurrency.
            progress: Called with a text about each step.
        """
        self._version, self._target = version, target
        self._installation, self._load, self._window_s, self._progress = installation, load, window_s, progress
        self._settings = version.repository.settings(version.name)

    def __call__(self, settings: ServingSettings, concurrencies: Sequence[int]) -> dict[int, LoopFigures]:
        """Serve the model with the settings and load it with each concurrency; see `search.Measure`.

        Raises:
            ServerError: The server does not start or does not answer.
        """
        self._progress(f"{settings}: starting")
        candidate = self._settings.with_target(self._target, settings, None)
        turn = {}
        with candidate_repository(self._version, candidate) as folder:
            options = ServerOptions.on_free_ports(folder, self._version.name)
            options = dataclasses.replace(options, target=self._target)
            server = TritonServer(options, self._installation).start()
            try:
                for concurrency in concurrencies:
                    self._progress(f"{settings}: concurrency {concurrency}")
                    warmup_s = self._window_s * WARMUP_SHARE
                    turn[concurrency] = self._load.run(server.grpc_url, concurrency, self._window_s, warmup_s)
            finally:
                server.kill()  # nobody else uses it, and Triton takes longer to stop than to start
        self._progress(f"{settings}: measured")
        return turn


@contextlib.contextmanager
def candidate_repository(version: ModelVersion, settings: ModelSettings) -> Iterator[Path]:
    """Yield a temporary repository with the active version of one model and other settings.

    Its configurations are new; its version folders are links to those of the model repository.

    Args:
        version: The active version.
        settings: The settings.

    Yields:
        The folder of the temporary repository.
    """
    with tempfile.TemporaryDirectory(prefix="mlcls-tune-") as temporary:
        folder = Path(temporary)
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

    Args:
        budget_s: How long the search may take.

    Yields:
        A function to call with a text about each step.
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
