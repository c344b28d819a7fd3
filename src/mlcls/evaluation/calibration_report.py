"""Calibrate a model's thresholds on one part of its scored images, and judge them on the other part."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mlcls.engines.runners import Scores
from mlcls.evaluation.calibration import (
    MIN_IMAGES,
    Objective,
    Outcome,
    Targets,
    check_scores,
    choose_held_out,
    fit_thresholds,
)

# Smallest fall of a metric that is not rounding.
_LEAST_FALL: Final = 1e-9


@dataclasses.dataclass(frozen=True)
class PrecisionRecallF1:
    """Precision, recall and F1, each from 0 to 1; NaN for a division by zero."""

    precision: float
    recall: float
    f1: float


@dataclasses.dataclass(frozen=True)
class Overall:
    """Metrics over all labels.

    Attributes:
        per_class: Mean precision (CP) and mean recall (CR) of the labels that some image has, and the F1 of these two
            (CF1). A label that is never predicted has the precision 0 here.
        pooled: Of all decisions together: OP, OR, OF1.
        mean_f1: Mean F1 of the labels that some image has. CF1 is another value: it can fall while each F1 rises.
    """

    per_class: PrecisionRecallF1
    pooled: PrecisionRecallF1
    mean_f1: float


@dataclasses.dataclass(frozen=True)
class LabelCalibration:
    """One label's old and new threshold, with the metrics of both on the held-out part; see `Fit` for the outcome.

    `fit_positives` and `held_out_positives` are the images of each part that have the label.
    """

    label: str
    old: float
    new: float
    outcome: Outcome
    fit_positives: int
    held_out_positives: int
    before: PrecisionRecallF1
    after: PrecisionRecallF1


@dataclasses.dataclass(frozen=True)
class CalibrationReport:
    """What a calibration did: the number of images of both parts, each label in the model's order, and overall metrics.

    All metrics are those on the held-out images, which `seed` chose, `before` with the old thresholds.
    """

    objective: Objective
    fit_images: int
    held_out_images: int
    seed: int
    labels: Sequence[LabelCalibration]
    before: Overall
    after: Overall

    @property
    def thresholds(self) -> tuple[float, ...]:
        """The new threshold of each label."""
        return tuple(label.new for label in self.labels)

    @property
    def changed(self) -> int:
        """Number of labels whose threshold has changed."""
        return sum(label.new != label.old for label in self.labels)

    @property
    def regressions(self) -> tuple[str, ...]:
        """What the new thresholds make worse on the held-out part, by the objective: reasons not to take them.

        For the best F1, a fall of CF1 or OF1. For a wanted precision or recall, if the labels' mean or the value over
        all decisions is farther below it than before.
        """
        if self.objective.target is None:
            return self._falls("f1")
        return self._falls(self.objective.figure, self.objective.target)

    @property
    def price(self) -> tuple[str, ...]:
        """Falls of CF1 and OF1 that a wanted precision or recall costs; empty for the best F1."""
        return () if self.objective.target is None else self._falls("f1")

    def _falls(self, figure: str, target: float = math.inf) -> tuple[str, ...]:
        """Describe the falls of a metric, as the labels' mean and over all decisions, to less than a target."""
        found = []
        for kind, prefix in (("per_class", "C"), ("pooled", "O")):
            old, new = (getattr(getattr(part, kind), figure) for part in (self.before, self.after))
            if new < min(old, target) - _LEAST_FALL:
                name = prefix + ("F1" if figure == "f1" else figure[0].upper())
                text = f"{name} falls from {old:.4f} to {new:.4f}"
                if name == "CF1":
                    means = f"{self.before.mean_f1:.4f} to {self.after.mean_f1:.4f}"
                    text += f" (the mean of the labels' F1 goes from {means})"
                found.append(text)
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        """Return the report for JSON; NaN becomes null."""
        document = {**dataclasses.asdict(self), "regressions": self.regressions, "price": self.price}
        without_nan: dict[str, Any] = json.loads(json.dumps(document), parse_constant=lambda _: None)
        return without_nan

    def to_table(self) -> str:
        """Return a line for each label and three for all: metrics on the held-out part, before and after."""
        width = max(8, *(len(label.label) for label in self.labels))  # the lines below the labels need 27 characters
        lines = [f"{'label':{width}}  {'threshold':^17}  {'F1':^13}  {'precision':^13}  {'recall':^13}  images"]
        for label in self.labels:
            note = {
                "too few with": f"  kept: only {label.fit_positives} images to fit on",
                "too few without": "  kept: too few images without it to fit on",
                "out of reach": "  kept: out of reach",
            }.get(label.outcome, "")
            lines.append(
                f"{label.label:{width}}  {label.old:7.4f} > {label.new:7.4f}  {_pairs(label.before, label.after)}  "
                f"{label.held_out_positives:6}{note}"
            )
        for name, kind in (("labels' means: CF1, CP, CR", "per_class"), ("all decisions: OF1, OP, OR", "pooled")):
            lines.append(f"{name:{width + 19}}  {_pairs(getattr(self.before, kind), getattr(self.after, kind))}")
        mean = f"{_show(self.before.mean_f1)} > {_show(self.after.mean_f1)}"
        lines.append(f"{'labels: mean F1':{width + 19}}  {mean}")
        return "\n".join(lines)


def calibrate(
    scores: Scores,
    targets: Targets,
    labels: Sequence[str],
    current: Sequence[float],
    objective: Objective,
    *,
    holdout: float = 0.5,
    seed: int = 0,
    groups: npt.NDArray[np.intp] | None = None,
    min_images: int = MIN_IMAGES,
) -> CalibrationReport:
    """Fit thresholds on one part of the images and judge them on the other part.

    See `fit_thresholds` for scores, targets, current thresholds and `min_images`, and `choose_held_out` for the choice
    of the images to judge on.

    Raises:
        ThresholdError: The arguments' shapes do not match, or the images cannot be split.
    """
    check_scores(scores, targets, len(current))
    held_out = choose_held_out(targets, holdout, seed, groups)
    fits = fit_thresholds(scores[~held_out], targets[~held_out], current, objective, min_images)
    scores, targets = scores[held_out], targets[held_out]
    before, old = judge(scores, targets, current)
    after, new = judge(scores, targets, [fit.threshold for fit in fits])
    positives = targets.sum(axis=0).tolist()
    calibrations = [
        LabelCalibration(label, float(threshold), fit.threshold, fit.outcome, fit.positives, *figures)
        for label, threshold, fit, *figures in zip(labels, current, fits, positives, old, new, strict=True)
    ]
    return CalibrationReport(objective, len(held_out) - len(scores), len(scores), seed, calibrations, before, after)


def judge(scores: Scores, targets: Targets, thresholds: Sequence[float]) -> tuple[Overall, list[PrecisionRecallF1]]:
    """Return the metrics of thresholds on scored images, overall and of each label; shapes as in `calibrate`."""
    is_predicted = scores > np.asarray(thresholds, np.float32)
    hits, predicted, positives = (part.sum(axis=0) for part in (is_predicted & targets, is_predicted, targets))
    present = positives > 0
    precision = np.divide(hits, predicted, out=np.zeros(len(hits)), where=predicted > 0)[present]
    recall = hits[present] / positives[present]
    f1 = 2 * hits[present] / (predicted + positives)[present]
    cp, cr, mean_f1 = (float(values.mean()) if values.size else math.nan for values in (precision, recall, f1))
    per_class = PrecisionRecallF1(cp, cr, 2 * cp * cr / (cp + cr) if cp + cr else 0.0)
    pooled = _measure(int(hits.sum()), int(predicted.sum()), int(positives.sum()))
    labels = [_measure(*map(int, counts)) for counts in zip(hits, predicted, positives, strict=True)]
    return Overall(per_class, pooled, mean_f1), labels


def _measure(hits: int, predicted: int, positives: int) -> PrecisionRecallF1:
    quotients = (hits, predicted), (hits, positives), (2 * hits, predicted + positives)
    return PrecisionRecallF1(*(part / whole if whole else math.nan for part, whole in quotients))


def _pairs(before: PrecisionRecallF1, after: PrecisionRecallF1) -> str:
    names = ("f1", "precision", "recall")
    return "  ".join(f"{_show(getattr(before, name))} > {_show(getattr(after, name))}" for name in names)


def _show(value: float) -> str:
    return "  -  " if math.isnan(value) else f"{value:5.3f}"
