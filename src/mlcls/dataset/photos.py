"""Photos that the user gives to compare engines on, with their labels where they are known."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mlcls.errors import DatasetError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclasses.dataclass(frozen=True)
class LabeledPhotos:
    """Files of photos.

    Attributes:
        paths: Photos, and folders of photos where no labels are known; empty for the sample photos.
        targets: (N, num_labels) which labels each photo has; None where that is not known.
    """

    paths: tuple[Path, ...]
    targets: npt.NDArray[np.bool_] | None

    @classmethod
    def open(cls, photos: Sequence[Path], annotations: Path | None, num_labels: int) -> LabeledPhotos:
        """Return the photos of an annotation file, or those that were named.

        Args:
            photos: Photos and folders of photos.
            annotations: Annotation file of an `MLClsDataset`; None for photos without labels.
            num_labels: Number of labels of the model.

        Raises:
            DatasetError: Both are given, or the annotation file is wrong.
        """
        if annotations is None:
            return cls(tuple(photos), None)
        if photos:
            raise DatasetError("Expected --photos or --annotations, which names its photos itself, got both.")
        from mlcls.dataset.annotations import read_annotations, target_matrix

        samples = read_annotations(annotations, num_labels)
        return cls(tuple(sample.image for sample in samples), target_matrix(samples))


def add_photo_options(parser: argparse.ArgumentParser, purpose: str) -> None:
    """Add `--photos` and `--annotations`, which `LabeledPhotos.open` takes."""
    parser.add_argument(
        "--photos",
        type=Path,
        nargs="+",
        default=[],
        metavar="PATH",
        help=f"photos, or folders of photos, {purpose} (default: crops of two samples)",
    )
    parser.add_argument(
        "--annotations",
        type=Path,
        metavar="FILE",
        help="annotation file of an MLClsDataset (val.txt) in place of --photos; mAP is compared too",
    )
