"""The images of a dataset that is read: `label.txt`, `train.txt` and `val.txt` as paths and targets."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from mlcls.dataset.annotations import Sample, target_matrix
from mlcls.dataset.labels import read_labels
from mlcls.errors import DatasetError

LABEL_FILE: Final = "label.txt"
TRAIN_FILE: Final = "train.txt"
VAL_FILE: Final = "val.txt"
_LISTED_FILES: Final = 3


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """The images of one annotation file.

    Attributes:
        paths: The image files.
        targets: (N, num_labels) which labels each image has.
    """

    paths: tuple[Path, ...]
    targets: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> ImageSet:
        """Return the samples' paths and vectors."""
        return cls(tuple(sample.image for sample in samples), target_matrix(samples))

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.paths)


def read_dataset_labels(folder: Path, num_classes: int | None = None) -> tuple[str, ...]:
    """Return the labels of a dataset's folder.

    Args:
        folder: The dataset.
        num_classes: How many labels there must be; None for any number.

    Raises:
        DatasetError: There is no such folder, `label.txt` is missing or wrong, or has another number of labels.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder}: expected the folder of a dataset, got a path that is none; see dataset_dir.")
    labels = read_labels(folder / LABEL_FILE)
    if num_classes is not None and num_classes != len(labels):
        raise DatasetError(
            f"{folder / LABEL_FILE}: expected {num_classes} labels, as num_classes says, got {len(labels)}; "
            f"correct one of them, or leave num_classes out."
        )
    return labels


def require_files(annotations: Path, paths: Sequence[Path]) -> None:
    """Look for every image, without opening any.

    Raises:
        DatasetError: Some are not there; the text has the first of their paths.
    """
    missing = [path for path in dict.fromkeys(paths) if not path.is_file()]
    if missing:
        more = f" and {len(missing) - _LISTED_FILES} more" if len(missing) > _LISTED_FILES else ""
        raise DatasetError(
            f"{annotations}: expected image files, got paths without one: "
            f"{', '.join(map(str, missing[:_LISTED_FILES]))}{more}."
        )
