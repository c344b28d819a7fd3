"""Fitted thresholds compared with all candidates tried one by one, and with scikit-learn."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.metrics import f1_score, precision_recall_curve, precision_score, recall_score

from mlcls.errors import ThresholdError
from mlcls.evaluation.calibration import Objective, choose_held_out, fit_thresholds
from mlcls.evaluation.calibration_report import calibrate, judge
from mlcls.evaluation.metrics import compute_metrics

Scores = npt.NDArray[np.float32]
Targets = npt.NDArray[np.bool_]

F1 = Objective()
KINDS = ("random", "two decimals", "five values", "neighbors", "zeros and ones")


def make_set(kind: str, seed: int, count: int = 50, labels: int = 4) -> tuple[Scores, Targets]:
    """Return scores that correlate with the targets."""
    generator = np.random.default_rng(seed)
    targets = generator.random((count, labels)) < 0.35
    scores = np.clip(generator.normal(0.4 + 0.25 * targets, 0.2), 0.001, 0.999).astype(np.float32)
    if kind == "two decimals":
        scores = scores.round(2)
    elif kind == "five values":
        scores = (scores * 4).round().astype(np.float32) / 4
    elif kind == "neighbors":  # of float32, so that no number lies between two of them
        steps = (scores * 10).astype(np.int32)
        scores = (np.full(scores.shape, 0.3, np.float32).view(np.int32) + steps).view(np.float32)
    elif kind == "zeros and ones":
        scores = scores.round().astype(np.float32)
    return scores, targets


def try_all(scores: Scores, targets: Targets) -> list[tuple[float, float, float]]:
    """Precision, recall and F1 of every decision that predicts something, counted one by one."""
    found = []
    for score in set(scores.tolist()) - {0.0}:
        predicted = [other >= score for other in scores.tolist()]
        hits = sum(one and other for one, other in zip(predicted, targets.tolist(), strict=True))
        count, positives = sum(predicted), int(targets.sum())
        found.append((hits / count, hits / positives, 2 * hits / (count + positives)))
    return found


def decide(scores: Scores, threshold: float) -> Targets:
    """As the served model: strictly greater, both float32."""
    decisions: Targets = scores > np.asarray([threshold], np.float32)
    return decisions


@pytest.mark.parametrize(("kind", "seed"), list(itertools.product(KINDS, range(2))))
def test_best_f1(kind: str, seed: int) -> None:
    scores, targets = make_set(kind, seed)
    for index, fit in enumerate(fit_thresholds(scores, targets, [0.5] * 4, F1)):
        column, truth = scores[:, index], targets[:, index]
        assert fit.outcome == "fitted"
        assert 0 <= fit.threshold <= 1
        assert float(np.float32(fit.threshold)) == fit.threshold
        best = max(f1 for _, _, f1 in try_all(column, truth))
        assert f1_score(truth, decide(column, fit.threshold)) == pytest.approx(best, abs=1e-12)
        precision, recall, _ = precision_recall_curve(truth, column)
        with np.errstate(invalid="ignore"):
            assert best == pytest.approx(np.nanmax(2 * precision * recall / (precision + recall)), abs=1e-12)


@pytest.mark.parametrize(("kind", "seed", "target"), list(itertools.product(KINDS, (0, 1), (0.5, 0.9, 1.0))))
def test_wanted_precision_and_recall(kind: str, seed: int, target: float) -> None:
    scores, targets = make_set(kind, seed)
    metrics = {"precision": precision_score, "recall": recall_score}
    for wanted, other in (("precision", "recall"), ("recall", "precision")):
        objective = Objective(wanted, target)  # type: ignore[arg-type]
        for index, fit in enumerate(fit_thresholds(scores, targets, [0.123] * 4, objective)):
            column, truth = scores[:, index], targets[:, index]
            figures = [dict(zip(metrics, values, strict=False)) for values in try_all(column, truth)]
            reached = [(each[other], each[wanted]) for each in figures if each[wanted] >= target]
            if not reached:
                assert (fit.outcome, fit.threshold) == ("out of reach", 0.123)
                continue
            predicted = decide(column, fit.threshold)
            found = metrics[other](truth, predicted), metrics[wanted](truth, predicted)
            assert found == pytest.approx(max(reached))


def test_neighbors_separate() -> None:
    """A threshold separates two scores even if no float32 lies between them, and even the smallest from 0."""
    one, tiny = np.float32(0.7), np.nextafter(np.float32(0), np.float32(1))
    for low, high in ((one, np.nextafter(one, np.float32(1))), (np.float32(0), tiny)):
        scores = np.array([[low], [low], [high], [high]], np.float32)
        targets = scores == high
        (fit,) = fit_thresholds(scores, targets, [0.5], F1, 1)
        assert (scores > np.float32(fit.threshold)).tolist() == targets.tolist()


def test_widest_gap_of_equals() -> None:
    scores = np.array([[0.1], [0.2], [0.6], [0.7]], np.float32)
    targets = np.array([[False], [False], [True], [True]])
    assert fit_thresholds(scores, targets, [0.5], F1, 1)[0].threshold == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("positives", "outcome"), [(0, "too few with"), (4, "too few with"), (5, "fitted"), (8, "too few without")]
)
def test_too_few_images(positives: int, outcome: str) -> None:
    scores = np.linspace(0.9, 0.1, 12, dtype=np.float32)[:, np.newaxis]
    targets = (np.arange(12) < positives)[:, np.newaxis]
    (fit,) = fit_thresholds(scores, targets, [0.123], F1)
    assert (fit.outcome, fit.positives, fit.threshold == 0.123) == (outcome, positives, outcome != "fitted")


def test_scores_of_zero_are_out_of_reach() -> None:
    scores, targets = np.zeros((12, 1), np.float32), np.arange(12)[:, np.newaxis] < 6
    for objective in (F1, Objective("recall", 0.5)):
        assert fit_thresholds(scores, targets, [0.3], objective) == [(0.3, "out of reach", 6)]


WRONG: dict[str, Callable[[Scores, Targets], object]] = {
    "another number of labels": lambda scores, targets: fit_thresholds(scores, targets, [0.5] * 3, F1),
    "logits": lambda scores, targets: fit_thresholds(scores * 8, targets, [0.5] * 4, F1),
    "NaN": lambda scores, targets: fit_thresholds(scores * np.float32("nan"), targets, [0.5] * 4, F1),
    "float64": lambda scores, targets: fit_thresholds(scores.astype(float), targets, [0.5] * 4, F1),
    "no images wanted": lambda scores, targets: fit_thresholds(scores, targets, [0.5] * 4, F1, 0),
    "precision in percent": lambda scores, targets: Objective("precision", 90),
    "recall of 0": lambda scores, targets: Objective("recall", 0),
    "everything held out": lambda scores, targets: choose_held_out(targets, 1.0, 0),
    "one image": lambda scores, targets: choose_held_out(targets[:1], 0.5, 0),
    "copies of one image": lambda scores, targets: choose_held_out(targets, 0.5, 0, np.zeros(len(targets), np.intp)),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments(name: str) -> None:
    scores, targets = make_set("random", 0)
    with pytest.raises(ThresholdError, match=r"^Expected"):
        WRONG[name](scores, targets)


def test_held_out_part() -> None:
    _, targets = make_set("random", 1, count=200)
    held_out = choose_held_out(targets, 0.4, 7)
    assert held_out.sum() == 80
    assert np.abs(targets[held_out].sum(axis=0) - 0.4 * targets.sum(axis=0)).max() <= 2
    assert (held_out == choose_held_out(targets, 0.4, 7)).all()
    assert (held_out != choose_held_out(targets, 0.4, 8)).any()
    groups = np.arange(200) // 2
    held_out = choose_held_out(targets, 0.4, 7, groups)
    assert (held_out[::2] == held_out[1::2]).all()


# --- the report


def make_shifted(count: int = 400) -> tuple[Scores, Targets]:
    """Scores whose best thresholds are far from 0.5, differently for each label."""
    generator = np.random.default_rng(3)
    targets = generator.random((count, 3)) < [0.3, 0.2, 0.01]
    centers = np.array([0.2, 0.75, 0.5])
    scores = np.clip(generator.normal(centers + 0.1 * (2 * targets - 1), 0.06), 0, 1).astype(np.float32)
    return scores, targets


def test_calibration_gains_on_the_held_out_part() -> None:
    scores, targets = make_shifted()
    report = calibrate(scores, targets, ["low", "high", "rare"], [0.5] * 3, F1, seed=2)
    held_out = choose_held_out(targets, 0.5, 2)
    assert (report.fit_images, report.held_out_images) == (200, 200)
    low, high, rare = report.labels
    assert (low.outcome, high.outcome, rare.outcome) == ("fitted", "fitted", "too few with")
    assert 0.15 < low.new < 0.25
    assert 0.7 < high.new < 0.8
    assert rare.new == rare.old == 0.5
    assert report.changed == 2
    for thresholds, overall, name in ((3 * [0.5], report.before, "before"), (report.thresholds, report.after, "after")):
        predicted = scores[held_out] > np.asarray(thresholds, np.float32)
        truth = targets[held_out]
        measured = compute_metrics(scores[held_out], truth, ["low", "high", "rare"], thresholds)
        metrics = [measured.overall[key] for key in ("CP", "CR", "CF1", "OP", "OR", "OF1")]
        both = dataclasses.astuple(overall.per_class) + dataclasses.astuple(overall.pooled)
        assert both == pytest.approx(metrics)  # as `mlcls evaluate` computes them
        assert overall.mean_f1 == pytest.approx(f1_score(truth, predicted, average="macro", zero_division=0))
        for index, label in enumerate(report.labels):
            expected = f1_score(truth[:, index], predicted[:, index], zero_division=0)
            assert getattr(label, name).f1 == pytest.approx(expected)
    assert report.after.pooled.f1 > report.before.pooled.f1 + 0.2
    assert report.regressions == report.price == ()
    document = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert document["labels"][0]["before"]["precision"] is None  # nothing was predicted
    assert document["after"]["pooled"]["f1"] == report.after.pooled.f1
    table = report.to_table()
    assert "rare" in table
    assert f"kept: only {rare.fit_positives} images to fit on" in table


def test_wanted_precision_has_its_price() -> None:
    scores, targets = make_shifted(2000)
    scores = np.clip(scores + np.random.default_rng(5).normal(0, 0.1, scores.shape), 0, 1).astype(np.float32)
    best = calibrate(scores, targets, ["low", "high", "rare"], [0.5] * 3, F1)
    report = calibrate(scores, targets, ["low", "high", "rare"], best.thresholds, Objective("precision", 0.9))
    assert report.labels[0].after.precision == pytest.approx(0.9, abs=0.08)
    assert report.labels[0].after.precision > report.labels[0].before.precision
    assert [text[:9] for text in report.price] == ["CF1 falls", "OF1 falls"]
    recall = calibrate(scores, targets, ["low", "high", "rare"], best.thresholds, Objective("recall", 0.95))
    assert recall.labels[0].after.recall == pytest.approx(0.95, abs=0.05)
    assert str(recall.objective) == "recall of at least 0.95"


def test_what_got_worse_is_said() -> None:
    """Thresholds fitted to noise are worse on other noise than good ones."""
    generator = np.random.default_rng(0)
    targets = generator.random((40, 6)) < 0.5
    scores = generator.random((40, 6)).astype(np.float32)
    worse = [calibrate(scores, targets, list("abcdef"), [0.001] * 6, F1, seed=seed) for seed in range(8)]
    assert any(report.regressions for report in worse)
    for report in worse:
        falls = report.after.pooled.f1 < report.before.pooled.f1
        assert falls == any(text.startswith("OF1 falls") for text in report.regressions)
    missed = calibrate(scores, targets, list("abcdef"), [0.001] * 6, Objective("recall", 0.9))
    assert any(text.startswith("OR falls from 1.0000") for text in missed.regressions) == (
        missed.after.pooled.recall < 0.9
    )


def test_judging_a_label_without_images() -> None:
    scores = np.array([[0.9, 0.9], [0.1, 0.1]], np.float32)
    targets = np.array([[True, False], [False, False]])
    overall, _ = judge(scores, targets, [0.5, 0.5])
    assert overall.per_class.f1 == 1
    assert overall.pooled.precision == 0.5
    assert judge(scores, targets, [0.95, 0.95])[0].per_class.f1 == 0
