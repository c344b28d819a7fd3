"""Annotation files of PaddleX's `MLClsDataset`: an image's path, a tab, and a 0 or 1 for each label, by commas."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mlcls.dataset.problems import Place, ProblemLog
from mlcls.dataset.text_lines import read_lines


@dataclasses.dataclass(frozen=True)
class Sample:
    """One line of an annotation file.

    Attributes:
        image: The image file.
        vector: Whether the image has each label.
    """

    image: Path
    vector: tuple[bool, ...]


@dataclasses.dataclass(frozen=True)
class Annotations:
    """The samples of one annotation file.

    Attributes:
        names: The images' paths as they are written.
        places: Where each sample stands.
        targets: (N, num_labels) which labels each image has.
    """

    names: tuple[str, ...]
    places: tuple[Place, ...]
    targets: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.names)


def read_annotations(path: Path, num_labels: int, root: Path | None = None) -> list[Sample]:
    """Read an annotation file; the images are not opened.

    Args:
        path: `train.txt`, `val.txt` or a file like them.
        num_labels: Number of labels.
        root: Folder that the images' paths are relative to; by default the annotation file's.

    Raises:
        DatasetError: The file cannot be read, has no line, or some lines are wrong; the text names the lines.
    """
    log = ProblemLog()
    annotations = parse_annotations(path, str(path), num_labels, log)
    log.raise_errors(path)
    if annotations is None:
        return []
    folder = path.parent if root is None else root
    return [
        Sample(folder / name, tuple(vector))
        for name, vector in zip(annotations.names, annotations.targets.tolist(), strict=True)
    ]


def parse_annotations(path: Path, name: str, num_labels: int, log: ProblemLog) -> Annotations | None:
    """Read an annotation file; what is wrong with a line goes to the log, and the line is left out.

    Args:
        path: The file.
        name: What problems call it.
        num_labels: Number of labels.
        log: Where problems go.

    Returns:
        The good lines; None where the file cannot be read at all.
    """
    lines = read_lines(path, name, log)
    if lines is None:
        return None
    if not lines and not log.errors:
        log.error("empty-file", Place(name), "expected one image a line, got an empty file")
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


def target_matrix(samples: Sequence[Sample]) -> npt.NDArray[np.bool_]:
    """Return which labels each image has, (N, num_labels)."""
    return np.array([sample.vector for sample in samples], dtype=np.bool_)


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
