"""Real models on real servers, shared by the integration tests."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlcls.releases.importing import import_model
from mlcls.repository.models import Repository
from mlcls.server.process import TritonServer
from mlcls.training.export import export_model
from support.image_samples import write_samples
from support.processes import ROOT, start_server
from support.served_models import SMALL_LABELS, SMALL_SIZE, SmallModels


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


@pytest.fixture
def root(small_models: SmallModels, tmp_path: Path) -> Path:
    """A copy of the repository with both small models, which a test may change."""
    return Path(shutil.copytree(small_models.repository, tmp_path / "model_repository"))


@pytest.fixture(scope="session")
def oldest_python() -> Path:
    """The Python of the environment with the oldest runtimes that a model must load in."""
    return _find_python("oldest")


@pytest.fixture(scope="session")
def paddlex_python() -> Path:
    """The Python of the environment with PaddleX."""
    return _find_python("paddlex")


@pytest.fixture(scope="session")
def ask_paddlex(paddlex_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """Asks PaddleX itself, as `support/paddlex_oracle.py` tells."""
    target = tmp_path_factory.mktemp("paddlex") / "answers.json"

    def ask(question: str, *arguments: str | Path, **environment: str) -> dict[str, Any]:
        command = [paddlex_python, ROOT / "tests/support/paddlex_oracle.py", target, question, *arguments]
        process = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
        assert process.returncode == 0, process.stderr[-2000:]
        answers: dict[str, Any] = json.loads(target.read_text(encoding="utf-8"))
        return answers

    return ask


def _find_python(environment: str) -> Path:
    python = ROOT / f".venv-{environment}" / "bin" / "python"
    if not python.exists():
        pytest.fail(f"{python} does not exist; `make test` makes it, or: make .venv-{environment}/.installed")
    return python
