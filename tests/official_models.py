"""The six official models, freshly initialised, exported and imported by several processes."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Final

from mlcls.catalog import OFFICIAL_MODELS
from mlcls.paddlex_export import export_model
from mlcls.paddlex_import import import_model

#: The two that take longest go first, one on each core.
_ORDER: Final = ("PP-HGNetV2-B6_ML", "CLIP_vit_base_patch16_448_ML", "PP-HGNetV2-B4_ML", "ResNet50_ML")


def prepare_official_models(folder: Path, repository: Path) -> list[Path]:
    """Exports all six to a folder and imports them into a repository; gives the PaddleX models in catalog order.

    Half of the work runs on one core (tracing, paddle2onnx, graph edits), so that two processes are quicker than one.
    """
    context = multiprocessing.get_context("spawn")  # paddle's threads do not survive a fork
    names = sorted(OFFICIAL_MODELS, key=lambda name: _ORDER.index(name) if name in _ORDER else len(_ORDER))
    with ProcessPoolExecutor(2, context) as pool:
        for future in [pool.submit(_prepare, name, folder / name, repository) for name in names]:
            future.result()
    return [folder / name for name in OFFICIAL_MODELS]


def _prepare(name: str, folder: Path, repository: Path) -> None:
    export_model(name, folder)
    import_model(str(folder), repository)
