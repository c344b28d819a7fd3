"""Evaluate a runner on an annotation file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mlcls.dataset.labels import DATASET_LABELS_FILE, read_labels
from mlcls.engines.runners import ImageRunner, Scores
from mlcls.errors import DatasetError
from mlcls.evaluation.metrics import Metrics, compute_metrics
from mlcls.evaluation.scoring import BATCH_SIZE, score_annotated


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation, with the runner's name and the annotation file.

    Scores (N, num_labels) are float32; targets (N, num_labels) say which labels each image has.
    """

    runner: str
    annotations: Path
    scores: Scores
    targets: npt.NDArray[np.bool_]
    metrics: Metrics

    @property
    def samples_expected(self) -> int:
        """Lines of the annotation file."""
        return len(self.targets)

    @property
    def samples_read(self) -> int:
        """Images for which the runner gave all scores."""
        return int(np.isfinite(self.scores).all(axis=1).sum())


def evaluate(
    runner: ImageRunner,
    annotations: Path,
    thresholds: Sequence[float],
    *,
    batch_size: int = BATCH_SIZE,
    num_workers: int | None = None,
    after_batch: Callable[[int], None] = lambda _: None,
) -> Evaluation:
    """Evaluate a runner on every image of an annotation file, with a progress bar.

    A `label.txt` beside the annotation file must have the runner's labels. See `score_annotated` for the arguments;
    `thresholds` has one for each label.

    Raises:
        DatasetError: The annotation file is wrong, its labels are not the runner's, no image has a label, or an image
            cannot be used.
        ServedImageError: The server has no good answer for an image.
        ServerError: The server does not answer.
    """
    label_file = annotations.parent / DATASET_LABELS_FILE
    if label_file.is_file():
        require_labels(label_file, read_labels(label_file), runner.labels)
    scores, targets = score_annotated(
        runner, annotations, batch_size=batch_size, num_workers=num_workers, after_batch=after_batch
    )
    metrics = compute_metrics(scores, targets, runner.labels, thresholds)
    return Evaluation(runner.name, annotations, scores, targets, metrics)


def require_labels(file: Path, labels: tuple[str, ...], expected: tuple[str, ...]) -> None:
    """Check that a dataset has a model's labels, so that the columns of its annotation files mean the same.

    Raises:
        DatasetError: They differ.
    """
    if labels == expected:
        return
    if len(labels) != len(expected):
        raise DatasetError(f"{file}: expected the model's {len(expected)} labels, got {len(labels)}.")
    index = next(index for index, label in enumerate(labels) if label != expected[index])
    raise DatasetError(
        f"{file}: expected the model's labels in its order, got {labels[index]!r} with class id {index}, which is "
        f"{expected[index]!r} to the model."
    )
