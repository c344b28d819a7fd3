"""The six official models, freshly initialised: exported and imported in the background while other tests run."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Final

from mlcls.catalog import OFFICIAL_MODELS
from mlcls.child_process import end_with_parent
from mlcls.paddlex_export import export_model
from mlcls.paddlex_import import import_model

#: Those that take longest go first.
_ORDER: Final = ("PP-HGNetV2-B6_ML", "CLIP_vit_base_patch16_448_ML", "PP-HGNetV2-B4_ML", "ResNet50_ML")
_NICENESS: Final = 5


class OfficialModels:
    """All six, on their way: half of the minutes that they take runs on one core, and most tests leave one idle."""

    def __init__(self, folder: Path) -> None:
        """Starts to export and import them into an empty folder."""
        self._folder = folder
        self._log = folder / "log.txt"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(folder)],
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=end_with_parent,
            )

    @property
    def repository(self) -> Path:
        """A repository with all six."""
        self._wait()
        return _repository(self._folder)

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


def _repository(folder: Path) -> Path:
    return folder / "model_repository"


def _prepare(name: str, folder: Path) -> None:
    export_model(name, folder / name)
    import_model(str(folder / name), _repository(folder))


def main(folder: Path) -> None:
    """Prepares all six; the body of the process."""
    os.nice(_NICENESS)
    names = sorted(OFFICIAL_MODELS, key=lambda name: _ORDER.index(name) if name in _ORDER else len(_ORDER))
    context = multiprocessing.get_context("spawn")  # paddle's threads do not survive a fork
    with ProcessPoolExecutor(2, context) as pool:
        for future in [pool.submit(_prepare, name, folder) for name in names]:
            future.result()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
