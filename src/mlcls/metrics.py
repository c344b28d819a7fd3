"""Figures of multi-label classification."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt


def average_precision(scores: npt.NDArray[np.float32], targets: npt.NDArray[np.bool_]) -> float:
    """Average precision of one label: the mean, over the images that have it, of the precision at that image's rank.

    Not interpolated; scikit-learn's `average_precision_score` where no two scores are equal.

    Args:
        scores: (N,) float32.
        targets: (N,) whether each image has the label.

    Returns:
        From 0 to 1; NaN where no image has the label.
    """
    if not targets.any():
        return float("nan")
    hits = targets[np.argsort(-scores, kind="stable")]
    ranks = np.flatnonzero(hits) + 1
    return float((np.arange(1, len(ranks) + 1) / ranks).mean())


def mean_average_precision(scores: npt.NDArray[np.float32], targets: npt.NDArray[np.bool_]) -> float:
    """Mean of the labels' average precision, over the labels that some image has.

    Args:
        scores: (N, num_labels) float32.
        targets: (N, num_labels) which labels each image has.

    Returns:
        From 0 to 1; NaN where no image has any label.
    """
    precisions = np.array(
        [average_precision(column, target) for column, target in zip(scores.T, targets.T, strict=True)]
    )
    present = precisions[~np.isnan(precisions)]
    return float(present.mean()) if present.size else float("nan")


def smallest_spread(scores: npt.NDArray[Any]) -> float:
    """The smallest distance between two rows of scores (N, num_labels): the highest difference over the labels.

    Returns:
        0 where there is one row only.
    """
    pairs = itertools.combinations(scores.astype(np.float64), 2)
    return min((float(np.abs(one - other).max()) for one, other in pairs), default=0.0)
