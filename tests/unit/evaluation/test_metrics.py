"""Every metric compared with scikit-learn."""

from __future__ import annotations

import json

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.metrics import average_precision_score, precision_recall_fscore_support

from mlcls.engines.runners import Scores
from mlcls.errors import DatasetError
from mlcls.evaluation.metrics import compute_metrics

LABELS = tuple(f"label {index}" for index in range(6))
THRESHOLDS = (0.5, 0.3, 0.6, 0.5, 0.7, 0.999)


def make_data(seed: int, images: int = 50, ties: bool = False) -> tuple[Scores, npt.NDArray[np.bool_]]:
    generator = np.random.default_rng(seed)
    scores = generator.random((images, len(LABELS))).astype(np.float32)
    targets = generator.random(scores.shape) < scores * 0.8
    targets[0] = True
    return (np.round(scores, 1).astype(np.float32) if ties else scores), targets


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(2))
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


def test_nothing_predicted() -> None:
    metrics = compute_metrics(np.zeros((3, 2), np.float32), np.ones((3, 2), np.bool_), ["a", "b"], [0.5, 0.5])
    assert [metrics.overall[name] for name in ("CP", "CR", "CF1", "OP", "OR", "OF1")] == [0] * 6
    assert metrics.overall["MultiLabelMAP"] == 1


def test_no_image_with_a_label() -> None:
    with pytest.raises(DatasetError, match="Expected images with labels"):
        compute_metrics(np.zeros((3, 2), np.float32), np.zeros((3, 2), np.bool_), ["a", "b"], [0.5, 0.5])
