"""Every metric compared with scikit-learn and with a straightforward implementation."""

from __future__ import annotations

import json
import math

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.metrics import average_precision_score, precision_recall_fscore_support

from mlcls.engines.runners import Scores
from mlcls.errors import DatasetError
from mlcls.evaluation.metrics import Metrics, compute_metrics
from mlcls.model.metrics import average_precision, mean_average_precision

LABELS = tuple(f"label {index}" for index in range(6))
THRESHOLDS = (0.5, 0.3, 0.6, 0.5, 0.7, 0.999)


def make_data(seed: int, images: int = 50, ties: bool = False) -> tuple[Scores, npt.NDArray[np.bool_]]:
    generator = np.random.default_rng(seed)
    scores = generator.random((images, len(LABELS))).astype(np.float32)
    targets = generator.random(scores.shape) < scores * 0.8
    targets[0] = True
    return (np.round(scores, 1).astype(np.float32) if ties else scores), targets


def walk_down(scores: list[float], targets: list[bool], method: str) -> float:
    """PaddleClas's way: one image after another, by descending score."""
    order = sorted(range(len(scores)), key=lambda index: scores[index], reverse=True)
    positives = sum(targets)
    precision, recall, hits = [], [], 0
    for rank, index in enumerate(order, 1):
        hits += targets[index]
        precision.append(hits / rank)
        recall.append(hits / positives)
    if method == "11point":
        points = [[p for p, r in zip(precision, recall, strict=True) if r >= point / 10] for point in range(11)]
        return sum(max(point) for point in points) / 11
    area, before = 0.0, 0.0
    for p, r in zip(precision, recall, strict=True):
        area += (r - before) * p
        before = r
    return area


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("images", [1, 2, 10, 50, 200])
@pytest.mark.parametrize("method", ["integral", "11point"])
def test_average_precision_step_by_step(method: str, images: int, ties: bool) -> None:
    scores, targets = make_data(images, images, ties)
    expected = [
        walk_down(column.tolist(), target.tolist(), method) for column, target in zip(scores.T, targets.T, strict=True)
    ]
    got = [
        average_precision(column, target, method)  # type: ignore[arg-type]
        for column, target in zip(scores.T, targets.T, strict=True)
    ]
    assert got == pytest.approx(expected, abs=1e-12)
    assert mean_average_precision(scores, targets, method) == pytest.approx(np.mean(expected), abs=1e-12)  # type: ignore[arg-type]


def test_eleven_points_by_hand() -> None:
    """Precision 1 up to a recall of 1/2, then 2/3."""
    scores = np.array([0.9, 0.8, 0.7, 0.6], np.float32)
    targets = np.array([True, False, True, False])
    assert average_precision(scores, targets, "11point") == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)
    assert math.isnan(average_precision(scores, np.zeros(4, np.bool_), "11point"))


def test_ties_keep_the_order_of_the_images() -> None:
    scores = np.array([0.5, 0.5], np.float32)
    assert average_precision(scores, np.array([True, False])) == 1
    assert average_precision(scores, np.array([False, True])) == 0.5


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_against_scikit_learn(seed: int, ties: bool) -> None:
    scores, targets = make_data(seed, ties=ties)
    predicted = scores > np.array(THRESHOLDS, np.float32)
    metrics = compute_metrics(scores, targets, LABELS, THRESHOLDS).overall
    for average, names in (("macro", ("CP", "CR")), ("micro", ("OP", "OR", "OF1"))):
        expected = precision_recall_fscore_support(targets, predicted, average=average, zero_division=0)
        assert [metrics[name] for name in names] == pytest.approx(expected[: len(names)], abs=1e-12)
    assert metrics["CF1"] == pytest.approx(2 * metrics["CP"] * metrics["CR"] / (metrics["CP"] + metrics["CR"]))
    if not ties:  # scikit-learn takes equal scores together
        expected_map = average_precision_score(targets, scores, average="macro")
        assert metrics["MultiLabelMAP"] == pytest.approx(expected_map, abs=1e-12)
    rows = compute_metrics(scores, targets, LABELS, THRESHOLDS).per_class
    for values, name in zip(
        precision_recall_fscore_support(targets, predicted, zero_division=0),
        ("precision", "recall", "f1", "positives"),
        strict=True,
    ):
        assert [getattr(row, name) for row in rows] == pytest.approx(values.tolist(), abs=1e-12)


def test_label_that_no_image_has() -> None:
    """It counts for no mean over labels, and every prediction of it is wrong."""
    scores, targets = make_data(7)
    targets[:, 2] = False
    others = [0, 1, 3, 4, 5]
    metrics = compute_metrics(scores, targets, LABELS, THRESHOLDS)
    alone = compute_metrics(
        scores[:, others], targets[:, others], [LABELS[i] for i in others], [THRESHOLDS[i] for i in others]
    )
    for name in ("MultiLabelMAP", "MultiLabelMAP_11point", "CP", "CR", "CF1", "OR"):
        assert metrics.overall[name] == alone.overall[name]
    assert metrics.overall["OP"] < alone.overall["OP"]
    assert metrics.not_counted == ("label 2",)
    row = metrics.per_class[2].to_dict()
    missing = ("average_precision", "average_precision_11point", "recall", "f1")
    assert [row[name] for name in missing] == [None] * 4
    json.dumps(row, allow_nan=False)


def test_threshold_is_strict() -> None:
    """In float32, as when labels are selected."""
    scores = np.array([[0.3], [0.30000004]], np.float32)
    metrics = compute_metrics(scores, np.array([[True], [True]]), ["one"], [0.3])
    assert (metrics.per_class[0].predicted, metrics.per_class[0].correct) == (1, 1)


def test_nothing_predicted() -> None:
    metrics = compute_metrics(np.zeros((3, 2), np.float32), np.ones((3, 2), np.bool_), ["a", "b"], [0.5, 0.5])
    assert [metrics.overall[name] for name in ("CP", "CR", "CF1", "OP", "OR", "OF1")] == [0] * 6
    assert metrics.overall["MultiLabelMAP"] == 1


def test_no_image_with_a_label() -> None:
    with pytest.raises(DatasetError, match="Expected images with labels"):
        compute_metrics(np.zeros((3, 2), np.float32), np.zeros((3, 2), np.bool_), ["a", "b"], [0.5, 0.5])


def test_worst_labels() -> None:
    metrics: Metrics = compute_metrics(*make_data(3), LABELS, THRESHOLDS)
    worst = metrics.worst(2)
    assert [row.average_precision for row in worst] == sorted(row.average_precision for row in metrics.per_class)[:2]
