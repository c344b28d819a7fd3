"""Annotation files of PaddleX's `MLClsDataset`: on each line an image's path, a tab, and 0 or 1 for each label."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

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
    """The image files of one annotation file, and its targets: (N, num_labels) whether each image has each label."""

    paths: tuple[Path, ...]
    targets: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.paths)


class Sample(NamedTuple):
    """One image of an annotation file: its path in the dataset, its place, and (num_labels,) whether it has a label."""

    name: str
    place: Place
    target: npt.NDArray[np.bool_]


def read_annotations(path: Path, num_labels: int) -> ImageSet:
    """Read an annotation file, in whose folder its images are; the images are not opened.

    Raises:
        DatasetError: The file cannot be read, is empty, or some lines are wrong; the text names the lines.
    """
    log = ProblemLog()
    samples = parse_annotations(path, str(path), num_labels, log) or []
    log.raise_errors(path)
    return ImageSet(tuple(path.parent / sample.name for sample in samples), stack_targets(samples, num_labels))


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


def parse_annotations(path: Path, name: str, num_labels: int, log: ProblemLog) -> list[Sample] | None:
    """Return the good lines of an annotation file, named `name` in problems; log what is wrong with the others.

    None if the file cannot be read at all.
    """
    lines = read_lines(path, name, log)
    if lines is None:
        return None
    if not lines and not log.errors:
        log.error("empty-file", Place(name), "expected one image per line, got an empty file")
    samples = []
    for number, line in lines:
        place = Place(name, number)
        image, tab, vector = line.partition("\t")
        values = [value.strip() for value in vector.split(",")]
        if not tab or not image.strip() or "\t" in vector:
            got = repr(line[:80]) if line.strip() else "an empty line"
            log.error("annotation-line", place, f"expected PATH, a tab and {num_labels} numbers, got {got}")
        elif len(values) != num_labels:
            got = f"{len(values) if vector else 0}"
            log.error("vector-length", place, f"expected {num_labels} numbers, one for each label, got {got}")
        elif not {"0", "1"}.issuperset(values):
            wrong = next(value for value in values if value not in ("0", "1"))
            log.error("vector-value", place, f"expected 0 or 1 for each label, got {wrong[:20]!r}")
        else:
            samples.append(Sample(image, place, np.array([value == "1" for value in values])))
    return samples


def stack_targets(samples: Sequence[Sample], num_labels: int) -> npt.NDArray[np.bool_]:
    """Return the targets of samples, (N, num_labels)."""
    return np.array([sample.target for sample in samples], np.bool_).reshape(len(samples), num_labels)


def format_annotations(names: Sequence[str], targets: npt.NDArray[np.bool_]) -> str:
    """Return the content of an annotation file."""
    return "".join(
        f"{name}\t{','.join('1' if value else '0' for value in vector)}\n"
        for name, vector in zip(names, targets.tolist(), strict=True)
    )
