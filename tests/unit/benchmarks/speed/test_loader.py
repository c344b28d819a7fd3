"""The benchmark of a training's loader, on a few photos."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.photo_set import write_photos
from benchmarks.speed.loader import Change, augmented, measure
from mlcls.dataset.annotations import ImageSet


@pytest.mark.parametrize("change", [None, augmented])
def test_a_rate_and_its_cost(tmp_path: Path, change: Change | None) -> None:
    paths = write_photos(tmp_path, [(24, 32)] * 2)
    rate = measure(ImageSet(tuple(paths), np.zeros((2, 1), np.bool_)), 1, change, seconds=0.01)
    assert rate.images_per_s > 0
    assert 0 < rate.core_ms_per_image < 1000
