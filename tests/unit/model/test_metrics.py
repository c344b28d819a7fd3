"""Mean average precision against scikit-learn and a straightforward implementation."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.metrics import average_precision_score

from mlcls.model.metrics import average_precision, mean_average_precision, smallest_spread

Scores = npt.NDArray[np.float32]
Targets = npt.NDArray[np.bool_]


def make_scores(seed: int, images: int = 60, labels: int = 7, ties: bool = False) -> tuple[Scores, Targets]:
    generator = np.random.default_rng(seed)
    scores = generator.permutation(images * labels).reshape(images, labels).astype(np.float32) / (images * labels)
    targets = generator.random((images, labels)) < scores * 0.8
    targets[0] = True
    return (np.round(scores, 1).astype(np.float32) if ties else scores), targets


def walk_down(scores: list[float], targets: list[bool], method: str) -> float:
    """PaddleClas's way: one image after another, by descending score; ties keep the order of the images."""
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
def test_average_precision_step_by_step(method: Literal["integral", "11point"], images: int, ties: bool) -> None:
    scores, targets = make_scores(images, images, ties=ties)
    columns = list(zip(scores.T, targets.T, strict=True))
    expected = [walk_down(column.tolist(), target.tolist(), method) for column, target in columns]
    assert [average_precision(*column, method) for column in columns] == pytest.approx(expected, abs=1e-12)
    assert mean_average_precision(scores, targets, method) == pytest.approx(np.mean(expected), abs=1e-12)


def test_against_scikit_learn() -> None:
    scores, targets = make_scores(5)
    expected = average_precision_score(targets, scores, average="macro")
    assert mean_average_precision(scores, targets) == pytest.approx(expected, abs=1e-12)


def test_labels_that_no_image_has() -> None:
    """They count for nothing; scikit-learn would count them as 0."""
    scores, targets = make_scores(9)
    targets[:, 2] = False
    others = [0, 1, 3, 4, 5, 6]
    assert math.isnan(average_precision(scores[:, 2], targets[:, 2]))
    assert math.isnan(average_precision(scores[:, 2], targets[:, 2], "11point"))
    assert mean_average_precision(scores, targets) == mean_average_precision(scores[:, others], targets[:, others])
    assert math.isnan(mean_average_precision(scores, np.zeros_like(targets)))


def test_smallest_spread() -> None:
    scores = np.array([[0.1, 0.9], [0.2, 0.1], [0.15, 0.9]], np.float32)
    assert smallest_spread(scores) == pytest.approx(0.05)
    assert smallest_spread(scores[:1]) == 0
