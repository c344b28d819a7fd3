"""The dataset that a training reads, checked before anything is trained."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mlcls.base.files import sha256_of
from mlcls.dataset.annotations import TRAIN_FILE, VAL_FILE, ImageSet, read_annotations, require_files
from mlcls.dataset.labels import DATASET_LABELS_FILE, read_dataset_labels
from mlcls.errors import DatasetError


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
        """Read the three files and look for every image, without opening any.

        Args:
            folder: The dataset.
            num_classes: How many labels there must be; None for any number.

        Raises:
            DatasetError: A file is missing or wrong, images are missing, or nothing could be measured on `val.txt`.
        """
        labels = read_dataset_labels(folder, num_classes)
        train, val = (read_annotations(folder / name, len(labels)) for name in (TRAIN_FILE, VAL_FILE))
        for name, images in ((TRAIN_FILE, train), (VAL_FILE, val)):
            require_files(folder / name, images.paths)
        if not val.targets.any():
            raise DatasetError(
                f"{folder / VAL_FILE}: expected images with labels, got none with any; mAP cannot be computed on them."
            )
        files = (DATASET_LABELS_FILE, TRAIN_FILE, VAL_FILE)
        return cls(labels, train, val, {name: sha256_of(folder / name) for name in files})
