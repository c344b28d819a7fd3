"""Models whose cost is compared: copies of one model, and models with more labels; PP-LCNet with random weights."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks.random_models import prepare_each, repository_of
from mlcls.repository.models import Repository

ARCHITECTURE: Final = "PP-LCNet_x1_0_ML"
# Labels of the official models; also the decoder's queries, unless there is one per label.
OFFICIAL_LABELS: Final = 80

# Batch sizes of the check at import: see `random_models`.
_BATCH_SIZES: Final = (1, 8)


@dataclasses.dataclass(frozen=True)
class GrowthModel:
    """A model to create.

    Attributes:
        name: Its name in the repository.
        labels: Number of labels.
        queries: Queries of the ML-Decoder, each for a group of labels; at most as many as labels.
    """

    name: str
    labels: int = OFFICIAL_LABELS
    queries: int = OFFICIAL_LABELS


def copies(count: int) -> list[GrowthModel]:
    """Return models of the official size with different names."""
    return [GrowthModel(f"copy_{number}") for number in range(1, count + 1)]


def with_labels(labels: int, queries: int) -> GrowthModel:
    """Return a model with this number of labels; for the official number, a copy."""
    if labels == queries == OFFICIAL_LABELS:
        return copies(1)[0]
    return GrowthModel(f"labels_{labels}_of_{queries}_queries", labels, queries)


def prepare_growth_models(folder: Path, models: Sequence[GrowthModel]) -> None:
    """Export and import the models that are not in `repository_of(folder)`, two at a time.

    Args:
        folder: Where they go; an interrupted run is continued.
        models: The models.

    Raises:
        MlclsError: A model cannot be exported or imported.
    """
    root = repository_of(folder)
    missing = [model for model in dict.fromkeys(models) if not Repository(root).is_imported(model.name)]
    if not missing:
        return
    missing.sort(key=lambda model: -model.queries)  # the slowest go first
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
    """Write random weights of a network with fewer queries than labels; the export finds their number in the file."""
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
