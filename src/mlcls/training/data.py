"""The dataset that a training reads, checked before anything is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from mlcls.base.files import sha256_of
from mlcls.dataset.annotations import Sample, read_annotations, target_matrix
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
        """The samples' paths and vectors."""
        return cls(tuple(sample.image for sample in samples), target_matrix(samples))

    def __len__(self) -> int:
        """Number of images."""
        return len(self.paths)


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """A dataset in PaddleX's format `MLClsDataset`.

    Attributes:
        labels: Label of each class id.
        train: The images to train on.
        val: The images to evaluate on.
        digests: SHA-256 of `label.txt`, `train.txt` and `val.txt`.
    """

    labels: tuple[str, ...]
    train: ImageSet
    val: ImageSet
    digests: dict[str, str]

    @classmethod
    def read(cls, folder: Path, num_classes: int | None = None) -> TrainingData:
        """Reads the three files and looks for every image, without opening any.

        Args:
            folder: The dataset.
            num_classes: How many labels there must be; None for any number.

        Raises:
            DatasetError: A file is missing or wrong, images are missing, or nothing could be measured on `val.txt`.
        """
        labels = read_dataset_labels(folder, num_classes)
        train, val = (ImageSet.of(read_annotations(folder / name, len(labels))) for name in (TRAIN_FILE, VAL_FILE))
        for name, images in ((TRAIN_FILE, train), (VAL_FILE, val)):
            require_files(folder / name, images.paths)
        if not val.targets.any():
            raise DatasetError(
                f"{folder / VAL_FILE}: expected images with labels, got none with any; mAP cannot be computed on them."
            )
        return cls(labels, train, val, {name: sha256_of(folder / name) for name in (LABEL_FILE, TRAIN_FILE, VAL_FILE)})


def read_dataset_labels(folder: Path, num_classes: int | None = None) -> tuple[str, ...]:
    """The labels of a dataset's folder.

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
    """Looks for every image, without opening any.

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
