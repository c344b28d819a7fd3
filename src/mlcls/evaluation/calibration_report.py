"""Calibrate a model's thresholds on one part of its scored images, and judge them on the other part."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from mlcls.engines.runners import Scores
from mlcls.evaluation.calibration import (
    MIN_IMAGES,
    Fit,
    Outcome,
    Targets,
    best_f1_thresholds,
    check_scores,
    choose_held_out,
    thresholds_for_precision,
    thresholds_for_recall,
)

# Smallest fall of a metric that is not rounding.
_LEAST_FALL: Final = 1e-9


@dataclasses.dataclass(frozen=True)
class Objective:
    """What thresholds are fitted for.

    Attributes:
        figure: `f1`, or the metric that must reach the target.
        target: The wanted precision or recall; None for `f1`.
    """

    figure: Literal["f1", "precision", "recall"] = "f1"
    target: float | None = None

    def __str__(self) -> str:
        return "best F1" if self.target is None else f"{self.figure} of at least {self.target:g}"

    def fit(
        self, scores: Scores, targets: Targets, current: Sequence[float], min_images: int = MIN_IMAGES
    ) -> list[Fit]:
        """Fit the thresholds; see `mlcls.evaluation.calibration`."""
        if self.target is None:
            return best_f1_thresholds(scores, targets, current, min_images)
        fit = thresholds_for_precision if self.figure == "precision" else thresholds_for_recall
        return fit(scores, targets, current, self.target, min_images)


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
    """What became of one label's threshold.

    Attributes:
        label: The label.
        old: Threshold before.
        new: Threshold after.
        outcome: See `Fit`.
        fit_positives: Images of the fitting part that have the label.
        held_out_positives: Images of the held-out part that have it.
        before: Metrics on the held-out part with the old threshold.
        after: Those with the new one.
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
    """What a calibration did.

    Attributes:
        objective: What the thresholds were fitted for.
        fit_images: Number of images that the thresholds were fitted on.
        held_out_images: Number of images that the metrics come from.
        seed: Seed that chose the held-out images.
        labels: Each label, in the model's order.
        before: Overall metrics on the held-out part with the old thresholds.
        after: Those with the new ones.
    """

    objective: Objective
    fit_images: int
    held_out_images: int
    seed: int
    labels: tuple[LabelCalibration, ...]
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
            return self._falls()
        found = []
        for kind, prefix in (("per_class", "C"), ("pooled", "O")):
            old, new = (getattr(getattr(part, kind), self.objective.figure) for part in (self.before, self.after))
            if new < min(old, self.objective.target) - _LEAST_FALL:
                found.append(_describe_fall(prefix + self.objective.figure[0].upper(), old, new))
        return tuple(found)

    @property
    def price(self) -> tuple[str, ...]:
        """Falls of CF1 and OF1 that a wanted precision or recall costs; empty for the best F1."""
        if self.objective.target is None:
            return ()
        return self._falls()

    def _falls(self) -> tuple[str, ...]:
        before, after = self.before, self.after
        found = []
        if after.per_class.f1 < before.per_class.f1 - _LEAST_FALL:
            mean = f" (the mean of the labels' F1 goes from {before.mean_f1:.4f} to {after.mean_f1:.4f})"
            found.append(_describe_fall("CF1", before.per_class.f1, after.per_class.f1) + mean)
        if after.pooled.f1 < before.pooled.f1 - _LEAST_FALL:
            found.append(_describe_fall("OF1", before.pooled.f1, after.pooled.f1))
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        """Return the report for JSON; NaN becomes null."""
        document: dict[str, Any] = _without_nan(dataclasses.asdict(self))
        return {**document, "regressions": list(self.regressions), "price": list(self.price)}

    def to_table(self) -> str:
        """Return a line for each label and three for all: metrics on the held-out part, before and after."""
        width = max(8, *(len(label.label) for label in self.labels))  # the lines below the labels need 27 characters
        lines = [f"{'label':{width}}  {'threshold':^17}  {'F1':^13}  {'precision':^13}  {'recall':^13}  images"]
        for label in self.labels:
            note = "" if label.outcome == "fitted" else f"  kept: {_explain(label)}"
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

    Args:
        scores: (N, num_labels) float32 from 0 to 1.
        targets: (N, num_labels) which labels each image has.
        labels: The label of each column.
        current: The current threshold of each label.
        objective: What to fit for.
        holdout: Share of the images to judge on.
        seed: Chooses the held-out images.
        groups: See `choose_held_out`.
        min_images: See `best_f1_thresholds`.

    Raises:
        ThresholdError: The arguments' shapes do not match, or the images cannot be split.
    """
    check_scores(scores, targets, len(current))
    held_out = choose_held_out(targets, holdout, seed, groups)
    fits = objective.fit(scores[~held_out], targets[~held_out], current, min_images)
    new = [fit.threshold for fit in fits]
    scores, targets = scores[held_out], targets[held_out]
    before, after = (_judge_labels(scores, targets, thresholds) for thresholds in (current, new))
    rows = (
        LabelCalibration(label, float(old), fit.threshold, fit.outcome, fit.positives, int(positives), *figures)
        for label, old, fit, positives, *figures in zip(
            labels, current, fits, targets.sum(axis=0), before, after, strict=True
        )
    )
    return CalibrationReport(
        objective,
        int((~held_out).sum()),
        int(held_out.sum()),
        seed,
        tuple(rows),
        judge(scores, targets, current),
        judge(scores, targets, new),
    )


def judge(scores: Scores, targets: Targets, thresholds: Sequence[float]) -> Overall:
    """Return the overall metrics of thresholds on scored images; shapes as in `calibrate`."""
    hits, predicted, positives = _count(scores, targets, thresholds)
    present = positives > 0
    precision = np.divide(hits, predicted, out=np.zeros(len(hits)), where=predicted > 0)[present]
    recall = hits[present] / positives[present]
    mean_precision, mean_recall = (float(v.mean()) if v.size else math.nan for v in (precision, recall))
    both = mean_precision + mean_recall
    per_class = PrecisionRecallF1(mean_precision, mean_recall, 2 * mean_precision * mean_recall / both if both else 0.0)
    f1s = 2 * hits[present] / (predicted + positives)[present]
    pooled = _measure(int(hits.sum()), int(predicted.sum()), int(positives.sum()))
    return Overall(per_class, pooled, float(f1s.mean()) if f1s.size else math.nan)


def _judge_labels(scores: Scores, targets: Targets, thresholds: Sequence[float]) -> list[PrecisionRecallF1]:
    return [_measure(*map(int, counts)) for counts in zip(*_count(scores, targets, thresholds), strict=True)]


def _count(scores: Scores, targets: Targets, thresholds: Sequence[float]) -> tuple[npt.NDArray[np.int64], ...]:
    """Return the hits, predictions and positives of each label."""
    predicted = scores > np.asarray(thresholds, np.float32)
    return (predicted & targets).sum(axis=0), predicted.sum(axis=0), targets.sum(axis=0)


def _measure(hits: int, predicted: int, positives: int) -> PrecisionRecallF1:
    return PrecisionRecallF1(
        _quotient(hits, predicted), _quotient(hits, positives), _quotient(2 * hits, predicted + positives)
    )


def _quotient(dividend: float, divisor: float) -> float:
    return dividend / divisor if divisor else math.nan


def _describe_fall(name: str, old: float, new: float) -> str:
    return f"{name} falls from {old:.4f} to {new:.4f}"


def _explain(label: LabelCalibration) -> str:
    if label.outcome == "out of reach":
        return "out of reach"
    if label.outcome == "too few without":
        return "too few images without it to fit on"
    return f"only {label.fit_positives} images to fit on"


def _pairs(before: PrecisionRecallF1, after: PrecisionRecallF1) -> str:
    names = ("f1", "precision", "recall")
    return "  ".join(f"{_show(getattr(before, name))} > {_show(getattr(after, name))}" for name in names)


def _show(value: float) -> str:
    return "  -  " if math.isnan(value) else f"{value:5.3f}"


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
