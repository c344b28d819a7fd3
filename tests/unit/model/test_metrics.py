"""Mean average precision against scikit-learn and a straightforward implementation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from mlcls.model.metrics import average_precision, mean_average_precision, smallest_spread


def make_scores(seed: int, images: int = 60, labels: int = 7) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    generator = np.random.default_rng(seed)
    scores = generator.permutation(images * labels).reshape(images, labels).astype(np.float32) / (images * labels)
    return scores, generator.random((images, labels)) < scores * 0.8


@pytest.mark.parametrize("seed", range(5))
def test_against_scikit_learn(seed: int) -> None:
    scores, targets = make_scores(seed)
    for label in range(scores.shape[1]):
        expected = average_precision_score(targets[:, label], scores[:, label])
        assert average_precision(scores[:, label], targets[:, label]) == pytest.approx(expected, abs=1e-12)
    expected = average_precision_score(targets, scores, average="macro")
    assert mean_average_precision(scores, targets) == pytest.approx(expected, abs=1e-12)


def test_by_hand() -> None:
    scores = np.array([0.9, 0.8, 0.7, 0.6], np.float32)
    targets = np.array([True, False, True, False])
    assert average_precision(scores, targets) == pytest.approx((1 / 1 + 2 / 3) / 2)


def test_labels_that_no_image_has() -> None:
    """They count for nothing; scikit-learn would count them as 0."""
    scores, targets = make_scores(9)
    targets[:, 2] = False
    others = [0, 1, 3, 4, 5, 6]
    assert math.isnan(average_precision(scores[:, 2], targets[:, 2]))
    assert mean_average_precision(scores, targets) == mean_average_precision(scores[:, others], targets[:, others])
    assert math.isnan(mean_average_precision(scores, np.zeros_like(targets)))


def test_smallest_spread() -> None:
    scores = np.array([[0.1, 0.9], [0.2, 0.1], [0.15, 0.9]], np.float32)
    assert smallest_spread(scores) == pytest.approx(0.05)
    assert smallest_spread(scores[:1]) == 0
