"""Figures of multi-label classification."""

from __future__ import annotations

import itertools
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

APMethod = Literal["integral", "11point"]


def ranked_precision(scores: npt.NDArray[np.float32], targets: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Return the precision of one label at the rank of each image that has it, by descending score.

    The recall there is 1/P, 2/P and so on, with P images that have the label. Images with equal scores keep their
    order, as in PaddleClas. Scores (N,) and targets (N,) give (P,) float64, empty if no image has the label.
    """
    hits = targets[np.argsort(-scores, kind="stable")]
    ranks = np.flatnonzero(hits) + 1
    return np.arange(1, len(ranks) + 1) / ranks


def average_precision(
    scores: npt.NDArray[np.float32], targets: npt.NDArray[np.bool_], method: APMethod = "integral"
) -> float:
    """Return the average precision of one label, by one of the two methods of PaddleClas's `MultiLabelMAP`.

    `integral` is the mean, over the images that have the label, of the precision at that image's rank. It is not
    interpolated, and equals scikit-learn's `average_precision_score` if no two scores are equal. `11point` is the mean
    of the highest precision at a recall of at least 0, 0.1, 0.2 up to 1, as in Pascal VOC 2007.

    Scores (N,) and targets (N,) give a figure from 0 to 1, NaN if no image has the label.
    """
    precision = ranked_precision(scores, targets)
    if not precision.size:
        return float("nan")
    if method == "integral":
        return float(precision.mean())
    return float(interpolate_precision(precision, np.arange(11) / 10).mean())


def interpolate_precision(
    precision: npt.NDArray[np.float64], recalls: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return the highest precision, of (P,) from `ranked_precision`, at a recall of at least each of `recalls` (R,)."""
    highest_from = np.maximum.accumulate(precision[::-1])[::-1]
    recall = np.arange(1, len(precision) + 1) / len(precision)
    return highest_from[np.searchsorted(recall, recalls)]


def mean_average_precision(
    scores: npt.NDArray[np.float32], targets: npt.NDArray[np.bool_], method: APMethod = "integral"
) -> float:
    """Return the mean average precision over the labels that some image has: PaddleClas's `MultiLabelMAP`.

    Scores and targets (N, num_labels) give a figure from 0 to 1, NaN if no image has a label.
    """
    columns = zip(scores.T[targets.any(axis=0)], targets.T[targets.any(axis=0)], strict=True)
    precisions = [average_precision(column, target, method) for column, target in columns]
    return float(np.mean(precisions)) if precisions else float("nan")


def smallest_spread(scores: npt.NDArray[Any]) -> float:
    """Return the smallest distance of two rows of scores (N, num_labels): their highest difference over the labels.

    It is 0 if there is only one row.
    """
    pairs = itertools.combinations(scores.astype(np.float64), 2)
    return min((float(np.abs(one - other).max()) for one, other in pairs), default=0.0)
