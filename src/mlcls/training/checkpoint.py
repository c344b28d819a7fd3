"""Checkpoints: four files with PaddleClas's suffixes in a folder that appears complete or not at all.

`NAME.pdparams` has parameters, `NAME.pdema` the moving average, `NAME.pdopt` the optimizer, `NAME.pdstates` the rest.
The states of random generators are not saved: each step, image and order draws from a generator of its own, which
depends only on seed and position (see `mlcls.training.trainer`), on any kind of device.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any, Final

from mlcls.base.files import staged_folder
from mlcls.errors import ModelFormatError, TrainingError
from mlcls.paddle.runtime import import_paddle
from mlcls.paddle.states import read_state

SUFFIXES: Final = ("pdparams", "pdema", "pdopt", "pdstates")
FORMAT_VERSION: Final = 1
# Key of the trained weights in `.pdstates` if `.pdparams` has the average.
_TRAINED_WEIGHTS: Final = "trained_weights"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A training at one moment: the states of the network, its moving average and the optimizer, and all else.

    All else is position, best score, history, loss scaling, settings and digests of the dataset.
    """

    weights: dict[str, Any]
    average: dict[str, Any]
    optimizer: dict[str, Any]
    states: dict[str, Any]


def write_checkpoint(folder: Path, checkpoint: Checkpoint, publish_average: bool = False) -> None:
    """Write a checkpoint; the folder, whose name its files have, appears or is replaced when all are complete.

    With `publish_average`, `.pdparams`, which evaluation and export read, has the average.
    """
    paddle = import_paddle("train")
    states = {"format_version": FORMAT_VERSION, **checkpoint.states}
    published = checkpoint.weights
    if publish_average:
        published = checkpoint.average
        states[_TRAINED_WEIGHTS] = checkpoint.weights
    contents = (published, checkpoint.average, checkpoint.optimizer, states)
    with staged_folder(folder) as staging:
        for suffix, content in zip(SUFFIXES, contents, strict=True):
            path = staging / f"{folder.name}.{suffix}"
            paddle.save(content, str(path))
            with path.open("rb") as file:
                os.fsync(file.fileno())


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint, given its folder, or the path of one of its files with or without suffix.

    Raises:
        TrainingError: There is no checkpoint, one of its files is missing or damaged, or it has another version.
    """
    folder = path.expanduser() if path.expanduser().is_dir() else path.expanduser().parent
    found = sorted(folder.glob("*.pdstates"))
    if len(found) != 1:
        raise TrainingError(
            f"Train.resume_path: expected the folder of a checkpoint, like output/latest, with one .pdstates, got "
            f"{len(found)} of them in {folder}."
        )
    contents = []
    for suffix in SUFFIXES:
        file = found[0].with_suffix(f".{suffix}")
        if not file.is_file():
            raise TrainingError(
                f"Train.resume_path: expected {', '.join(SUFFIXES)} of a checkpoint, but {file} does not exist."
            )
        try:
            content = read_state(file)
        except ModelFormatError as error:
            raise TrainingError(f"Expected a part of a checkpoint. {error}") from None
        if not isinstance(content, dict):
            raise TrainingError(f"{file}: expected a file of a checkpoint, got {type(content).__name__}.")
        contents.append(content)
    weights, average, optimizer, states = contents
    if states.get("format_version") != FORMAT_VERSION:
        raise TrainingError(
            f"{found[0]}: expected a checkpoint of mlcls, format {FORMAT_VERSION}, got "
            f"{states.get('format_version', 'another program')!r}. Its weights can still be used: "
            f"Train.pretrain_weight_path."
        )
    return Checkpoint(states.pop(_TRAINED_WEIGHTS, weights), average, optimizer, states)
