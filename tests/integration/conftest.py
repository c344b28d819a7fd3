"""Real models on real servers, shared by the integration tests."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from image_samples import write_samples
from mlcls.paddlex_export import export_model
from mlcls.paddlex_import import import_model
from mlcls.server import TritonServer
from official_models import OfficialModels
from processes import ROOT, start_server
from served_models import SMALL_LABELS, SMALL_SIZE, ParityRow, SmallModels

_SIGNALLED = ("test_training_checkpoints.py", "test_tensorrt_build.py", "test_training.py")
_OFFICIAL_MODELS = pytest.StashKey[OfficialModels]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "integration" in item.path.parts:
            item.add_marker(pytest.mark.integration)
    items.sort(key=_needs_official_models)  # last, so that the models are ready by then
    # first those that send themselves signals: after tests that predict with Paddle this has ended in a segfault
    items.sort(key=lambda item: item.path.name not in _SIGNALLED)


def pytest_collection_finish(session: pytest.Session) -> None:
    if not session.config.option.collectonly and any(map(_needs_official_models, session.items)):
        folder = Path(tempfile.mkdtemp(prefix="mlcls-official-models-"))
        session.config.stash[_OFFICIAL_MODELS] = OfficialModels(folder)
        session.config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _OFFICIAL_MODELS in session.config.stash:
        session.config.stash[_OFFICIAL_MODELS].stop()


def _needs_official_models(item: pytest.Item) -> bool:
    names = getattr(item, "fixturenames", ())
    return "official_models" in names or "official_repository" in names


@pytest.fixture(scope="session")
def sample_images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_samples(tmp_path_factory.mktemp("samples"))


@pytest.fixture(scope="session")
def small_models(tmp_path_factory: pytest.TempPathFactory) -> SmallModels:
    folder = tmp_path_factory.mktemp("small")
    models = SmallModels(folder / "with_sigmoid", folder / "with_logits", folder / "model_repository")
    for path, with_sigmoid in ((models.with_sigmoid, True), (models.with_logits, False)):
        export_model("PP-LCNet_x1_0_ML", path, labels=SMALL_LABELS, size=SMALL_SIZE, with_sigmoid=with_sigmoid)
        import_model(str(path), models.repository, name=f"small_{path.name}")
    return models


@pytest.fixture(scope="session")
def small_server(small_models: SmallModels) -> Iterator[TritonServer]:
    with start_server(small_models.repository, "small_with_sigmoid", "small_with_logits") as server:
        yield server


@pytest.fixture(scope="session")
def official_models(pytestconfig: pytest.Config) -> list[Path]:
    """All six as PaddleX inference models, freshly initialised."""
    return pytestconfig.stash[_OFFICIAL_MODELS].folders


@pytest.fixture(scope="session")
def official_repository(pytestconfig: pytest.Config) -> Path:
    """A repository with all six, imported once; tests add nothing to it."""
    return pytestconfig.stash[_OFFICIAL_MODELS].repository


@pytest.fixture(scope="session")
def oldest_python() -> Path:
    """The Python of the environment with the oldest runtimes that a model must load in."""
    return _find_python("oldest")


@pytest.fixture(scope="session")
def paddlex_python() -> Path:
    """The Python of the environment with PaddleX."""
    return _find_python("paddlex")


def _find_python(environment: str) -> Path:
    python = ROOT / f".venv-{environment}" / "bin" / "python"
    if not python.exists():
        pytest.fail(f"{python} does not exist; `make test` makes it, or: make .venv-{environment}/.installed")
    return python


@pytest.fixture
def record_parity(request: pytest.FixtureRequest) -> Callable[[ParityRow], None]:
    """Adds a row to the table."""
    return lambda row: request.node.user_properties.append(("parity", dataclasses.asdict(row)))


@pytest.fixture
def record_memory(request: pytest.FixtureRequest) -> Callable[[int], None]:
    """Notes the memory, in bytes, of the server with all six models."""
    return lambda memory_bytes: request.node.user_properties.append(("memory_bytes", memory_bytes))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints what tests recorded, in whichever process they ran."""
    recorded = [item for report in terminalreporter.getreports("passed") for item in report.user_properties]
    rows = [ParityRow(**value) for name, value in recorded if name == "parity" and isinstance(value, dict)]
    if rows:
        terminalreporter.section("served ensembles against PaddleX")
        terminalreporter.write_line(f"{'model':30}{'highest difference':>20}{'smallest spread':>18}{'near ties':>12}")
        for row in rows:
            terminalreporter.write_line(f"{row.model:30}{row.difference:20.1e}{row.spread:18.2f}{row.near_ties:12}")
    for memory_bytes in (value for name, value in recorded if name == "memory_bytes" and isinstance(value, int)):
        memory_mb = memory_bytes / 1e6
        terminalreporter.write_line(f"memory of one server with all six, all processes (PSS): {memory_mb:.0f} MB")
