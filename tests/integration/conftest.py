"""Real models on real servers, shared by the integration tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlcls.releases.importing import import_model
from mlcls.repository.models import Repository
from mlcls.server.process import TritonServer
from mlcls.training.export import export_model
from support.image_samples import write_samples
from support.processes import ROOT, start_server
from support.served_models import SMALL_LABELS, SMALL_SIZE, ParityRow, SmallModels


@pytest.fixture(scope="session")
def sample_images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_samples(tmp_path_factory.mktemp("samples"))


@pytest.fixture(scope="session")
def small_models(tmp_path_factory: pytest.TempPathFactory) -> SmallModels:
    folder = tmp_path_factory.mktemp("small")
    models = SmallModels(folder / "with_sigmoid", folder / "with_logits", folder / "model_repository")
    for path, with_sigmoid in ((models.with_sigmoid, True), (models.with_logits, False)):
        export_model("PP-LCNet_x1_0_ML", path, labels=SMALL_LABELS, size=SMALL_SIZE, with_sigmoid=with_sigmoid)
        import_model(str(path), Repository(models.repository), name=f"small_{path.name}")
    return models


@pytest.fixture(scope="session")
def small_server(small_models: SmallModels) -> Iterator[TritonServer]:
    with start_server(small_models.repository, "small_with_sigmoid", "small_with_logits") as server:
        yield server


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
