"""The metrics of an evaluation: of each label, and of all together."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mlcls.engines.runners import Scores
from mlcls.errors import DatasetError
from mlcls.model.metrics import average_precision


@dataclasses.dataclass(frozen=True)
class LabelMetrics:
    """One label's metrics, from 0 to 1; the average precisions are NaN if no image has the label.

    Attributes:
        threshold: The label is predicted if its score is strictly greater.
        positives: Images that have the label.
        predicted: Images that it is predicted for.
        correct: Images that have it and that it is predicted for.
    """

    class_id: int
    label: str
    threshold: float
    positives: int
    predicted: int
    correct: int
    average_precision: float
    average_precision_11point: float

    @property
    def precision(self) -> float:
        """Share of the predictions that are correct; 0 if there are none."""
        return _ratio(self.correct, self.predicted)

    @property
    def recall(self) -> float:
        """Share of the images with the label for which it is predicted; NaN if no image has it."""
        return _ratio(self.correct, self.positives) if self.positives else math.nan

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; NaN if no image has the label."""
        return _ratio(2 * self.correct, self.predicted + self.positives) if self.positives else math.nan

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form; NaN becomes null."""
        values = {**dataclasses.asdict(self), "precision": self.precision, "recall": self.recall, "f1": self.f1}
        return {name: None if value != value else value for name, value in values.items()}


# Columns of `per_class.csv`, and keys of `per_class` in a result file.
LABEL_COLUMNS: Final = (*(field.name for field in dataclasses.fields(LabelMetrics)), "precision", "recall", "f1")


@dataclasses.dataclass(frozen=True)
class Metrics:
    """The metrics of a model on a dataset.

    Means over labels (mAP, CP, CR) count only labels that some image has. Sums over images and labels (OP, OR) count
    all labels: one that no image has can still be predicted, wrongly.
    """

    per_class: tuple[LabelMetrics, ...]

    @property
    def counted(self) -> tuple[LabelMetrics, ...]:
        """The labels that some image has."""
        return tuple(row for row in self.per_class if row.positives)

    @property
    def not_counted(self) -> tuple[str, ...]:
        """The labels that no image has."""
        return tuple(row.label for row in self.per_class if not row.positives)

    @property
    def overall(self) -> dict[str, float]:
        """All labels' metrics by their names in result files.

        `MultiLabelMAP` and `MultiLabelMAP_11point` as PaddleClas defines them, but from 0 to 1. Precision, recall and
        F1: means over labels (`CP`, `CR`, and `CF1` of these two means), and over all decisions (`OP`, `OR`, `OF1`).
        """
        counted = self.counted
        cp, cr = (float(np.mean([getattr(row, name) for row in counted])) for name in ("precision", "recall"))
        correct, predicted, positives = (
            sum(getattr(row, name) for row in self.per_class) for name in ("correct", "predicted", "positives")
        )
        return {
            "MultiLabelMAP": float(np.mean([row.average_precision for row in counted])),
            "MultiLabelMAP_11point": float(np.mean([row.average_precision_11point for row in counted])),
            "CP": cp,
            "CR": cr,
            "CF1": _ratio(2 * cp * cr, cp + cr),
            "OP": _ratio(correct, predicted),
            "OR": _ratio(correct, positives),
            "OF1": _ratio(2 * correct, predicted + positives),
        }


def compute_metrics(
    scores: Scores, targets: npt.NDArray[np.bool_], labels: Sequence[str], thresholds: Sequence[float]
) -> Metrics:
    """Compute all metrics of scores (N, num_labels) float32 and targets (N, num_labels), which labels each image has.

    Raises:
        DatasetError: No image has any label.
    """
    if not targets.any():
        raise DatasetError("Expected images with labels, got only images without any; metrics need labels.")
    limits = np.asarray(thresholds, np.float32)  # compared as select_labels compares
    rows = []
    for index, (label, limit) in enumerate(zip(labels, limits, strict=True)):
        column, target = scores[:, index], targets[:, index]
        is_predicted = column > limit
        rows.append(
            LabelMetrics(
                class_id=index,
                label=label,
                threshold=float(thresholds[index]),
                positives=int(target.sum()),
                predicted=int(is_predicted.sum()),
                correct=int((is_predicted & target).sum()),
                average_precision=average_precision(column, target),
                average_precision_11point=average_precision(column, target, "11point"),
            )
        )
    return Metrics(tuple(rows))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
