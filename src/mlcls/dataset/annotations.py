"""Annotation files of PaddleX's `MLClsDataset`: an image's path, a tab, and a 0 or 1 for each label, by commas."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from mlcls.errors import DatasetError

#: Faults that an error lists; it counts the others.
_LISTED_FAULTS: Final = 5


@dataclasses.dataclass(frozen=True)
class Sample:
    """One line of an annotation file.

    Attributes:
        image: The image file.
        vector: Whether the image has each label.
    """

    image: Path
    vector: tuple[bool, ...]


def read_annotations(path: Path, num_labels: int, root: Path | None = None) -> list[Sample]:
    """Reads an annotation file; the images are not opened.

    Args:
        path: `train.txt`, `val.txt` or a file like them.
        num_labels: Number of labels.
        root: Folder that the images' paths are relative to; by default the annotation file's.

    Raises:
        DatasetError: The file cannot be read, has no line, or some lines are wrong; the text names the lines.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: expected a UTF-8 annotation file, got one that cannot be read: {error}.") from None
    samples: list[Sample] = []
    faults: list[str] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            samples.append(_parse_line(line, num_labels, path.parent if root is None else root))
        except ValueError as error:
            faults.append(f"line {number}: {error}")
    if faults:
        more = f"; and {len(faults) - _LISTED_FAULTS} more" if len(faults) > _LISTED_FAULTS else ""
        raise DatasetError(f"{path}: {'; '.join(faults[:_LISTED_FAULTS])}{more}.")
    if not samples:
        raise DatasetError(f"{path}: expected one image a line, got an empty file.")
    return samples


def target_matrix(samples: Sequence[Sample]) -> npt.NDArray[np.bool_]:
    """Which labels each image has, (N, num_labels)."""
    return np.array([sample.vector for sample in samples], dtype=np.bool_)


def _parse_line(line: str, num_labels: int, root: Path) -> Sample:
    image, tab, vector = line.rstrip("\r\n").rpartition("\t")
    if not tab or not image:
        raise ValueError(f"expected PATH, a tab and {num_labels} numbers, got {line[:80]!r}")
    values = [value.strip() for value in vector.split(",")]
    if len(values) != num_labels:
        raise ValueError(f"expected {num_labels} numbers, one for each label, got {len(values)}")
    wrong = [value for value in values if value not in ("0", "1")]
    if wrong:
        raise ValueError(f"expected 0 or 1 for each label, got {wrong[0][:20]!r}")
    return Sample(root / image, tuple(value == "1" for value in values))
