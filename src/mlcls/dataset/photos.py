"""Photos that a user gives to compare or calibrate engines on, with their labels if they are known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mlcls.dataset.annotations import read_annotations
from mlcls.errors import DatasetError


class LabeledPhotos(NamedTuple):
    """Files of photos.

    Attributes:
        paths: Photos, or photos and folders of photos without known labels; empty for the sample photos.
        targets: (N, num_labels) whether each photo has each label; None if that is not known.
    """

    paths: tuple[Path, ...]
    targets: npt.NDArray[np.bool_] | None

    @classmethod
    def open(cls, photos: Sequence[Path], annotations: Path | None, num_labels: int) -> LabeledPhotos:
        """Return the photos of an annotation file, or the given photos and folders without labels.

        Raises:
            DatasetError: Both are given, or the annotation file is wrong.
        """
        if annotations is None:
            return cls(tuple(photos), None)
        if photos:
            raise DatasetError("Expected --photos or --annotations, which names its photos itself, got both.")
        images = read_annotations(annotations, num_labels)
        return cls(images.paths, images.targets)
