"""The six official models with random weights: exported and imported in the background while other tests run.

The process that the user started prepares them, in a folder whose path it passes to the workers of pytest-xdist. Only
workers know which tests there are, so they request the models with a file in that folder.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from benchmarks.random_models import repository_of
from mlcls.base.files import write_text
from mlcls.base.processes import end_with_parent
from mlcls.model.catalog import OFFICIAL_MODELS
from support.processes import ROOT

# Key of the folder in the input of a worker of pytest-xdist.
WORKER_INPUT = "official_models"

_WANTED = "wanted"
_STATUS = "exit_status"
_LOG = "log.txt"
_POLL_S = 0.2


class OfficialModels:
    """All six models, prepared now or later.

    Attributes:
        folder: See `start_preparation`.
    """

    def __init__(self, folder: Path) -> None:
        """Use a folder."""
        self.folder = folder

    def want(self) -> None:
        """Request the models; do nothing the second time."""
        (self.folder / _WANTED).touch()

    @property
    def repository(self) -> Path:
        """A repository with all six."""
        self._wait()
        return repository_of(self.folder)

    @property
    def folders(self) -> list[Path]:
        """The PaddleX inference models, in the catalog's order."""
        self._wait()
        return [self.folder / name for name in OFFICIAL_MODELS]

    def _wait(self) -> None:
        self.want()
        status = self.folder / _STATUS
        while not status.exists():
            time.sleep(_POLL_S)
        if status.read_text() != "0":
            raise RuntimeError(f"The six models could not be prepared: {(self.folder / _LOG).read_text()[-2000:]}")


def start_preparation(config: pytest.Config) -> Path:
    """Return a folder in which the models are prepared once requested; the preparation ends with the test run."""
    folder = Path(tempfile.mkdtemp(prefix="mlcls-official-models-"))
    ended = threading.Event()
    thread = threading.Thread(target=_prepare, args=(folder, ended))
    thread.start()

    def stop() -> None:
        ended.set()
        thread.join()
        shutil.rmtree(folder, ignore_errors=True)

    config.add_cleanup(stop)
    return folder


def _prepare(folder: Path, ended: threading.Event) -> None:
    while not (folder / _WANTED).exists():
        if ended.wait(_POLL_S):
            return
    with (folder / _LOG).open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.random_models", str(folder)],
            stdout=log,
            stderr=log,
            cwd=ROOT,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
    while process.poll() is None:
        if ended.wait(_POLL_S):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return
    write_text(folder / _STATUS, str(process.returncode))
