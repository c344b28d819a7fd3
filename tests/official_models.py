"""The six official models, freshly initialised: exported and imported in the background while other tests run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from benchmarks.random_models import repository_of

from mlcls.catalog import OFFICIAL_MODELS
from mlcls.child_process import end_with_parent
from processes import ROOT


class OfficialModels:
    """All six, on their way: half of the minutes that they take runs on one core, and most tests leave one idle."""

    def __init__(self, folder: Path) -> None:
        """Starts to export and import them into an empty folder."""
        self._folder = folder
        self._log = folder / "log.txt"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.random_models", str(folder)],
                stdout=log,
                stderr=log,
                cwd=ROOT,
                start_new_session=True,
                preexec_fn=end_with_parent,
            )

    @property
    def repository(self) -> Path:
        """A repository with all six."""
        self._wait()
        return repository_of(self._folder)

    @property
    def folders(self) -> list[Path]:
        """The PaddleX inference models, in the catalog's order."""
        self._wait()
        return [self._folder / name for name in OFFICIAL_MODELS]

    def stop(self) -> None:
        """Ends what is still under way."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _wait(self) -> None:
        if self._process.wait() != 0:
            raise RuntimeError(f"The six models could not be prepared: {self._log.read_text()[-2000:]}")
