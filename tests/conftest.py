"""Fixtures that several test files use, and the order of the tests."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from benchmarks.random_models import repository_of
from mlcls.base.processes import end_with_parent
from mlcls.model.catalog import OFFICIAL_MODELS
from mlcls.model.spec import ImageTransform, ModelSpec
from support.processes import ROOT


class OfficialModels:
    """The six official models with random weights, made in the background while other tests run."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="mlcls-official-models-"))
        self._log = self._folder / "log.txt"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.random_models", self._folder],
                stdout=log,
                stderr=log,
                cwd=ROOT,
                start_new_session=True,
                preexec_fn=end_with_parent,
            )

    def wait(self) -> Path:
        """Return the folder as soon as all are in it."""
        assert self._process.wait() == 0, f"the official models could not be made: {self._log.read_text()[-2000:]}"
        return self._folder

    def stop(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


_OFFICIAL_MODELS = pytest.StashKey[OfficialModels]()


def pytest_configure() -> None:
    """Servers get the signals' own effects, although a shell starts a job in the background with these ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "integration" in item.path.parts:
            item.add_marker(pytest.mark.integration)
        if _needs_official_models(item):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: "integration" not in item.path.parts)  # long files first, so that workers end together
    late = {item.path for item in items if _needs_official_models(item)}
    items.sort(key=lambda item: item.path in late)  # last, so that the models are ready by then


def pytest_collection_finish(session: pytest.Session) -> None:
    if not session.config.option.collectonly and any(map(_needs_official_models, session.items)):
        models = session.config.stash[_OFFICIAL_MODELS] = OfficialModels()
        session.config.add_cleanup(models.stop)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests recorded, in whatever process they ran."""
    recorded: list[tuple[str, Any]] = [
        item for report in terminalreporter.getreports("passed") for item in report.user_properties
    ]
    rows = [value for name, value in recorded if name == "parity"]
    if rows:
        terminalreporter.section("served ensembles against PaddleX")
        terminalreporter.write_line(f"{'model':30}{'highest difference':>20}{'smallest spread':>18}{'near ties':>12}")
    for model, difference, spread, near_ties in rows:
        terminalreporter.write_line(f"{model:30}{difference:20.1e}{spread:18.2f}{near_ties:12}")
    for memory_mb in (value for name, value in recorded if name == "memory_mb"):
        terminalreporter.write_line(f"memory of one server with all six, all processes (PSS): {memory_mb:.0f} MB")


def _needs_official_models(item: pytest.Item) -> bool:
    names = getattr(item, "fixturenames", ())
    return "official_models" in names or "official_repository" in names


@pytest.fixture(scope="session")
def official_models(pytestconfig: pytest.Config) -> list[Path]:
    """All six as PaddleX inference models with random weights."""
    folder = pytestconfig.stash[_OFFICIAL_MODELS].wait()
    return [folder / name for name in OFFICIAL_MODELS]


@pytest.fixture(scope="session")
def official_repository(pytestconfig: pytest.Config) -> Path:
    """A repository with all six, imported once; tests must not change it."""
    return repository_of(pytestconfig.stash[_OFFICIAL_MODELS].wait())


@pytest.fixture
def custom_spec() -> ModelSpec:
    """An imported model unlike the official ones: three labels, 96x64, a threshold for each label."""
    return ModelSpec(
        name="animals-v2",
        architecture="PP-LCNet_x1_0_ML",
        labels=("cat", "犬", 'a "fox"'),
        thresholds=(0.5, 0.3, 0.75),
        transform=ImageTransform(
            height=96,
            width=64,
            resize_backend="cv2",
            interpolation="LINEAR",
            scale=1 / 255,
            mean=(0.1, 0.2, 0.3),
            std=(0.4, 0.5, 0.6),
        ),
        source_activation="sigmoid",
        source_sha256={"inference.json": "1" * 64, "inference.pdiparams": "2" * 64, "inference.yml": "3" * 64},
        onnx_sha256="4" * 64,
    )
