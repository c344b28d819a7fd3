"""The six official models with random weights: `python -m benchmarks.random_models FOLDER`.

Speed does not depend on the weights, so benchmarks and tests use these if the official weights are not available. Each
is written as a PaddleX inference model to FOLDER/NAME and imported into FOLDER/model_repository.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Final

from tqdm import tqdm

from mlcls.model.catalog import OFFICIAL_MODELS
from mlcls.repository.models import Repository

# Where benchmarks create the models, relative to the root of the checkout.
RANDOM_MODELS: Final = Path("build/bench")

# The slowest go first.
_ORDER: Final = ("PP-HGNetV2-B6_ML", "CLIP_vit_base_patch16_448_ML", "PP-HGNetV2-B4_ML", "ResNet50_ML")
_NICENESS: Final = 5
# Batch sizes of the check at import; the full check, on eight photos, takes longer than everything else.
_BATCH_SIZES: Final = (1, 2)


def repository_of(folder: Path) -> Path:
    """Return the model repository in a folder of random models."""
    return folder / "model_repository"


def prepare_models(folder: Path, names: Sequence[str]) -> None:
    """Export and import the models that are missing, two at a time, with a progress bar; all six take minutes.

    Args:
        folder: Where they go; an interrupted run is continued.
        names: Official models.

    Raises:
        MlclsError: A model cannot be exported or imported.
    """
    repository = Repository(repository_of(folder))  # an import comes last, and appears complete or not at all
    missing = [name for name in names if not ((folder / name).is_dir() and repository.is_imported(name))]
    missing.sort(key=lambda name: _ORDER.index(name) if name in _ORDER else len(_ORDER))
    if not missing:
        return
    context = multiprocessing.get_context("spawn")  # paddle's threads do not survive a fork
    with (
        ProcessPoolExecutor(2, context) as pool,
        tqdm(total=len(missing), desc="preparing models", unit=" models", disable=None) as bar,
    ):
        for future in as_completed([pool.submit(_prepare, folder, name) for name in missing]):
            future.result()
            bar.update()


def _prepare(folder: Path, name: str) -> None:
    from mlcls.images.photos import sample_photo_paths
    from mlcls.releases.importing import import_model
    from mlcls.training.export import export_model

    export_model(name, folder / name)
    import_model(
        str(folder / name), Repository(repository_of(folder)), photos=sample_photo_paths(), batch_sizes=_BATCH_SIZES
    )


if __name__ == "__main__":
    os.nice(_NICENESS)  # it runs next to tests
    prepare_models(Path(sys.argv[1]), tuple(OFFICIAL_MODELS))
