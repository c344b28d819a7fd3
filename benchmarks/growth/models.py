"""Models whose cost is compared: copies of one, and ones with more labels, all PP-LCNet with random weights."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks.random_models import prepare_each, repository_of
from mlcls.repository.models import Repository

ARCHITECTURE: Final = "PP-LCNet_x1_0_ML"
# Labels of the official models, and the decoder's queries where they are not one for each label.
OFFICIAL_LABELS: Final = 80

# Of the check at the import: see `random_models`.
_BATCH_SIZES: Final = (1, 8)


@dataclasses.dataclass(frozen=True)
class GrowthModel:
    """A model that is made.

    Attributes:
        name: Its name in the repository.
        labels: How many.
        queries: Queries of the ML-Decoder; each has the labels of a group. At most as many as labels.
    """

    name: str
    labels: int = OFFICIAL_LABELS
    queries: int = OFFICIAL_LABELS


def copies(count: int) -> list[GrowthModel]:
    """Return models of the official size under different names."""
    return [GrowthModel(f"copy_{number}") for number in range(1, count + 1)]


def with_labels(labels: int, queries: int) -> GrowthModel:
    """Return a model with another number of labels; the official number is a copy's."""
    if labels == queries == OFFICIAL_LABELS:
        return copies(1)[0]
    return GrowthModel(f"labels_{labels}_of_{queries}_queries", labels, queries)


def prepare_growth_models(folder: Path, models: Sequence[GrowthModel]) -> None:
    """Export and import the models that are not in `repository_of(folder)`, two at a time.

    Args:
        folder: Where to; an interrupted run is continued.
        models: What is wanted.

    Raises:
        MlclsError: One cannot be exported or imported.
    """
    root = repository_of(folder)
    missing = [model for model in dict.fromkeys(models) if not Repository(root).is_imported(model.name)]
    if not missing:
        return
    missing.sort(key=lambda model: -model.queries)  # those that take longest go first
    prepare_each(_prepare, folder, missing)


def _prepare(folder: Path, model: GrowthModel) -> None:
    from mlcls.releases.importing import import_model
    from mlcls.training.export import export_model

    labels = [f"label {number}" for number in range(model.labels)]
    with tempfile.TemporaryDirectory(prefix="mlcls-growth-") as work:
        exported = Path(work) / "model"
        if model.queries == model.labels:
            export_model(ARCHITECTURE, exported, labels=labels)
        else:
            weights = Path(work) / "grouped.pdparams"
            _write_weights(weights, model)
            export_model(ARCHITECTURE, exported, labels=labels, weights=weights)
        import_model(str(exported), Repository(repository_of(folder)), name=model.name, batch_sizes=_BATCH_SIZES)


def _write_weights(path: Path, model: GrowthModel) -> None:
    """Random weights of a network that has fewer queries than labels; the export finds their number in the file."""
    from mlcls.images.photos import photo_pixels
    from mlcls.images.transforms import normalize
    from mlcls.model.catalog import DEFAULT_TRANSFORM
    from mlcls.paddle.runtime import import_paddle
    from mlcls.training.architectures import build_network
    from mlcls.training.export import CALIBRATION_PHOTOS
    from mlcls.training.initialization import make_input_sensitive

    paddle = import_paddle("train")
    paddle.seed(0)
    network = build_network(ARCHITECTURE, model.labels, query_num=model.queries)
    make_input_sensitive(network, normalize(photo_pixels((), DEFAULT_TRANSFORM, CALIBRATION_PHOTOS), DEFAULT_TRANSFORM))
    paddle.save(network.state_dict(), str(path))
