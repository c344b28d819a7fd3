"""Annotation files of PaddleX's `MLClsDataset`: on each line an image's path, a tab, and 0 or 1 for each label."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

from mlcls.dataset.problems import Place, ProblemLog
from mlcls.dataset.text_lines import read_lines
from mlcls.errors import DatasetError, ImageError

TRAIN_FILE: Final = "train.txt"
VAL_FILE: Final = "val.txt"
_LISTED_FILES: Final = 3

_Prepared = TypeVar("_Prepared")


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """The images of one annotation file.

    Attributes:
        paths: The image files.
        targets: (N, num_labels) whether each image has each label.
    """

    paths: tuple[Path, ...]
    targets: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.paths)


@dataclasses.dataclass(frozen=True)
class Annotations:
    """The samples of one annotation file as it is written.

    Attributes:
        names: Paths of the images, relative to the dataset.
        places: Place of each sample in the file.
        targets: (N, num_labels) whether each image has each label.
    """

    names: tuple[str, ...]
    places: tuple[Place, ...]
    targets: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.names)


def read_annotations(path: Path, num_labels: int) -> ImageSet:
    """Read an annotation file, in whose folder its images are; the images are not opened.

    Args:
        path: `train.txt`, `val.txt` or a file like them.
        num_labels: Number of labels.

    Raises:
        DatasetError: The file cannot be read, is empty, or some lines are wrong; the text names the lines.
    """
    log = ProblemLog()
    annotations = parse_annotations(path, str(path), num_labels, log)
    log.raise_errors(path)
    if annotations is None:
        return ImageSet((), np.empty((0, num_labels), np.bool_))
    return ImageSet(tuple(path.parent / name for name in annotations.names), annotations.targets)


def require_files(annotations: Path, paths: Sequence[Path]) -> None:
    """Check that every image exists, without opening any.

    Raises:
        DatasetError: Some are missing; the text has the first of their paths.
    """
    missing = [path for path in dict.fromkeys(paths) if not path.is_file()]
    if missing:
        more = f" and {len(missing) - _LISTED_FILES} more" if len(missing) > _LISTED_FILES else ""
        raise DatasetError(
            f"{annotations}: expected image files, got paths without one: "
            f"{', '.join(map(str, missing[:_LISTED_FILES]))}{more}."
        )


def read_image(path: Path, prepare: Callable[[bytes], _Prepared]) -> _Prepared:
    """Return what a function makes of an image file's bytes.

    Raises:
        DatasetError: The file cannot be read, or the function cannot use the image; the text has the path.
    """
    try:
        return prepare(path.read_bytes())
    except OSError as error:
        raise DatasetError(f"{path}: expected an image, got a file that cannot be read: {error.strerror}.") from None
    except ImageError as error:
        raise DatasetError(f"{path}: expected an image, got one that cannot be used: {error}") from None


def parse_annotations(path: Path, name: str, num_labels: int, log: ProblemLog) -> Annotations | None:
    """Read an annotation file; log what is wrong with a line and leave the line out.

    Args:
        path: The file.
        name: Name of the file in problems.
        num_labels: Number of labels.
        log: Where problems go.

    Returns:
        The good lines; None if the file cannot be read at all.
    """
    lines = read_lines(path, name, log)
    if lines is None:
        return None
    if not lines and not log.errors:
        log.error("empty-file", Place(name), "expected one image per line, got an empty file")
    names, places, vectors = [], [], []
    for number, line in lines:
        try:
            image, vector = _parse_line(line, num_labels)
        except _LineError as error:
            log.error(error.kind, Place(name, number), str(error))
            continue
        names.append(image)
        places.append(Place(name, number))
        vectors.append(vector)
    targets = np.array(vectors, dtype=np.bool_).reshape(len(vectors), num_labels)
    return Annotations(tuple(names), tuple(places), targets)


def format_annotations(names: Sequence[str], targets: npt.NDArray[np.bool_]) -> str:
    """Return the content of an annotation file."""
    return "".join(
        f"{name}\t{','.join('1' if value else '0' for value in vector)}\n"
        for name, vector in zip(names, targets.tolist(), strict=True)
    )


class _LineError(ValueError):
    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def _parse_line(line: str, num_labels: int) -> tuple[str, npt.NDArray[np.bool_]]:
    image, tab, vector = line.partition("\t")
    if not tab or not image.strip() or "\t" in vector:
        got = repr(line[:80]) if line.strip() else "an empty line"
        raise _LineError("annotation-line", f"expected PATH, a tab and {num_labels} numbers, got {got}")
    values = [value.strip() for value in vector.split(",")]
    if len(values) != num_labels:
        raise _LineError(
            "vector-length", f"expected {num_labels} numbers, one for each label, got {len(values) if vector else 0}"
        )
    row = np.array([value == "1" for value in values], dtype=np.bool_)
    wrong = next((value for value, is_one in zip(values, row, strict=True) if not is_one and value != "0"), None)
    if wrong is not None:
        raise _LineError("vector-value", f"expected 0 or 1 for each label, got {wrong[:20]!r}")
    return image, row
