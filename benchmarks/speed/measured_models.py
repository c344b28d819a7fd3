"""Which models a benchmark measures, and where their files are."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks.random_models import prepare_models, repository_of
from benchmarks.speed.peers.engine_settings import ModelFiles
from mlcls.errors import RepositoryError
from mlcls.paddle.model import PaddleXModel
from mlcls.repository.models import Repository

# Where models with random weights are made, relative to the root of the checkout.
RANDOM_MODELS: Final = Path("build/bench")


@dataclasses.dataclass(frozen=True)
class BenchModels:
    """Imported models together with the PaddleX inference models that they come from.

    Attributes:
        repository: The model repository.
        paddlex_models: The folder that has each PaddleX model in a folder of its name.
        names: The models.
        random_weights: Whether they were made here.
    """

    repository: Path
    paddlex_models: Path
    names: tuple[str, ...]
    random_weights: bool = False

    def files(self, name: str) -> ModelFiles:
        """Spec, served graph and PaddleX model of one.

        Raises:
            RepositoryError: It is not imported, or from another PaddleX model than the folder's.
            ModelFormatError: The folder has no PaddleX model.
        """
        spec = Repository(self.repository).active(name).spec
        folder = self.paddlex_models / name
        found = PaddleXModel.open(folder).make_spec(name).source_sha256
        if found != spec.source_sha256:
            raise RepositoryError(
                f"Expected in {folder} the PaddleX model that {name} in {self.repository} was imported from, got other "
                f"files; import it again: mlcls import {folder}."
            )
        return ModelFiles(spec, Repository(self.repository).active(name).weights("embedded"), folder)


def find_models(root: Path, paddlex_models: Path | None, names: Sequence[str]) -> BenchModels:
    """Return the imported models where they and their PaddleX folders are there, else ones with random weights.

    Args:
        root: The model repository.
        paddlex_models: The folder of the PaddleX models; None makes models with random weights.
        names: The models.

    Raises:
        MlclsError: A model that is there is not as it should be; or one cannot be made.
    """
    if paddlex_models is not None:
        return BenchModels(root, paddlex_models, tuple(names))
    prepare_models(RANDOM_MODELS, names)
    return BenchModels(repository_of(RANDOM_MODELS), RANDOM_MODELS, tuple(names), random_weights=True)
