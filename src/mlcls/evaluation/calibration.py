"""Fit per-label thresholds to scores and targets: for the best F1, or for a wanted precision or recall.

A label is predicted if its score is strictly greater than its threshold, both as float32, as in the served model. Only
the scores above a threshold matter, so there is one candidate between each two neighboring scores of the fitting part,
and one below the lowest. Ties and rounding included, every other threshold decides like one of these, except one that
predicts nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from mlcls.dataset.stratification import choose_validation
from mlcls.engines.runners import Scores
from mlcls.errors import ThresholdError

Targets = npt.NDArray[np.bool_]

# Images with a label, and images without it, that its threshold needs to be fitted.
MIN_IMAGES: Final = 5

Outcome = Literal["fitted", "too few with", "too few without", "out of reach"]


@dataclasses.dataclass(frozen=True)
class Objective:
    """What thresholds are fitted for.

    Attributes:
        figure: `f1`, or the metric that must reach the target.
        target: The wanted precision or recall, above 0, at most 1; None for `f1`.
    """

    figure: Literal["f1", "precision", "recall"] = "f1"
    target: float | None = None

    def __post_init__(self) -> None:
        if self.target is not None and not 0 < self.target <= 1:
            raise ThresholdError(f"Expected a {self.figure} above 0 and at most 1, got {self.target}.")

    def __str__(self) -> str:
        return "best F1" if self.target is None else f"{self.figure} of at least {self.target:g}"


class Fit(NamedTuple):
    """The threshold fitted to one label.

    Attributes:
        threshold: A float32 value from 0 to 1; the current one if the outcome is not `fitted`.
        outcome: `fitted`; `too few with` or `too few without`: not enough images with or without the label;
            `out of reach`: no threshold has the wanted precision or recall.
        positives: Images of the fitting part that have the label.
    """

    threshold: float
    outcome: Outcome
    positives: int


def fit_thresholds(
    scores: Scores, targets: Targets, current: Sequence[float], objective: Objective, min_images: int = MIN_IMAGES
) -> list[Fit]:
    """Return the threshold of each label that fits an objective best.

    For F1, it is the one with the best F1; on a tie, the one with the widest gap around it. For a wanted precision, it
    is the one with the highest recall among those that have the precision; on a tie, the one with the higher precision.
    Likewise for a wanted recall. Scores (N, num_labels) are float32 from 0 to 1, with targets (N, num_labels). A label
    keeps its `current` threshold if none can be fitted, or if fewer than `min_images` images, at least 1, have it, or
    do not have it.

    Raises:
        ThresholdError: The arguments' shapes do not match, or scores are not from 0 to 1.
    """
    check_scores(scores, targets, len(current))
    if min_images < 1:
        raise ThresholdError(f"Expected at least 1 image of a label to fit its threshold on, got {min_images}.")
    fits = []
    for column, truth, threshold in zip(scores.T, targets.T, current, strict=True):
        outcome: Outcome = "out of reach"
        positives = int(truth.sum())
        if positives < min_images:
            outcome = "too few with"
        elif len(truth) - positives < min_images:
            outcome = "too few without"
        else:
            chosen = _choose_threshold(column, truth, objective)
            if chosen is not None:
                outcome, threshold = "fitted", chosen
        fits.append(Fit(threshold, outcome, positives))
    return fits


def choose_held_out(
    targets: Targets, share: float, seed: int, groups: npt.NDArray[np.intp] | None = None
) -> npt.NDArray[np.bool_]:
    """Return (N,) whether each image is held out to judge on, so that each label keeps its share in both parts.

    At least one image is held out, and one is not. The same seed gives the same choice.

    Args:
        targets: (N, num_labels) which labels each image has.
        share: Share of the images to hold out, between 0 and 1.
        seed: Seed of the choice.
        groups: (N,) a number for each image, the same for copies of one picture, which stay together; by default each
            image is its own group.

    Raises:
        ThresholdError: The share is out of range, or there are fewer than two pictures.
    """
    if not 0 < share < 1:
        raise ThresholdError(f"Expected a share of held-out images between 0 and 1, got {share}.")
    groups = np.arange(len(targets)) if groups is None else groups
    if len(np.unique(groups)) < 2:
        raise ThresholdError("Expected at least two different images, some to fit and some to judge on, got fewer.")
    count = min(max(round(len(targets) * share), 1), len(targets) - 1)
    held_out = choose_validation(targets, groups, count, seed)
    if held_out.all() or not held_out.any():
        raise ThresholdError(
            "Expected images that can be split, got too many copies of one picture for the share to be held out."
        )
    return held_out


def check_scores(scores: Scores, targets: Targets, num_labels: int) -> None:
    """Check that scores and targets match.

    Raises:
        ThresholdError: Their shapes differ or are not (N, num_labels), or a score is not from 0 to 1.
    """
    if scores.dtype != np.float32 or scores.ndim != 2 or scores.shape != targets.shape or scores.shape[1] != num_labels:
        raise ThresholdError(
            f"Expected float32 scores and targets (N, {num_labels}), got {scores.dtype} {scores.shape} and "
            f"{targets.shape}."
        )
    if not ((scores >= 0) & (scores <= 1)).all():
        raise ThresholdError("Expected scores from 0 to 1, got some that are not; they are taken after the sigmoid.")


def _choose_threshold(scores: npt.NDArray[np.float32], targets: Targets, objective: Objective) -> float | None:
    """Return the threshold of one label that fits best; None if none reaches the objective."""
    # from the highest score to the lowest; no valid threshold lies below a score of 0
    above = np.unique(scores[scores > 0])[::-1]
    below = np.append(above[1:], np.float32(0))
    # halved in float64, so that only the last rounding can reach the upper score; then the lower one separates too
    middle = ((above.astype(np.float64) + below.astype(np.float64)) / 2).astype(np.float32)
    thresholds = np.where(middle < above, middle, below)
    predicted, hits = (len(part) - np.searchsorted(np.sort(part), above) for part in (scores, scores[targets]))
    positives = int(targets.sum())
    precision, recall = hits / predicted, hits / positives
    if objective.target is None:
        # one division, which rounds equal fractions alike, so that equal F1s compare equal
        values, then = 2 * hits / (predicted + positives), above.astype(np.float64) - below.astype(np.float64)
    else:
        then, other = (precision, recall) if objective.figure == "precision" else (recall, precision)
        values = np.where(then >= objective.target, other, 0.0)
    if not values.any():
        return None
    best = np.flatnonzero(values == values.max())
    return float(thresholds[best[np.argmax(then[best])]])
