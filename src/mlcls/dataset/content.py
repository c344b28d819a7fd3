"""The content of an `MLClsDataset`, and where its files are."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from mlcls.dataset.annotations import TRAIN_FILE, VAL_FILE, Annotations, format_annotations, parse_annotations
from mlcls.dataset.labels import DATASET_LABELS_FILE, format_labels, parse_labels
from mlcls.dataset.problems import Place, ProblemLog
from mlcls.errors import DatasetError

TRAIN: Final = "train"
VAL: Final = "val"
# Annotation file of each part.
PART_FILES: Final[Mapping[str, str]] = {TRAIN: TRAIN_FILE, VAL: VAL_FILE}
IMAGE_FOLDER: Final = "images"
COCO_FOLDER: Final = "annotations"

_DRIVE: Final = re.compile(r"[A-Za-z]:[\\/]")


@dataclasses.dataclass(frozen=True)
class DatasetContent:
    """A dataset in memory, without its images.

    Attributes:
        labels: Label of each class id.
        parts: Samples of `train` and of `val`.
    """

    labels: tuple[str, ...]
    parts: Mapping[str, Annotations]

    def to_files(self) -> dict[str, bytes]:
        """Return the content of each file of the dataset by name."""
        files = {DATASET_LABELS_FILE: format_labels(self.labels)}
        for part, samples in self.parts.items():
            files[PART_FILES[part]] = format_annotations(samples.names, samples.targets)
        return {name: text.encode() for name, text in files.items()}


def find_dataset(folder: Path) -> Path:
    """Return the folder of the dataset: the given one, or the one inside it that an archive was unpacked to.

    If the given folder has none of a dataset's files, it is the parent of the only folder `images` at any depth, as in
    PaddleX.

    Raises:
        DatasetError: There is no such folder, or no dataset in it, or several.
    """
    if not folder.is_dir():
        got = "a file" if folder.exists() else "a path that does not exist"
        raise DatasetError(f"{folder}: expected the folder of a dataset, got {got}; see Global.dataset_dir.")
    if any((folder / name).exists() for name in (DATASET_LABELS_FILE, *PART_FILES.values(), COCO_FOLDER)):
        return folder
    found = _image_folders(folder)
    if len(found) == 1:
        return found[0].parent
    files = ", ".join((DATASET_LABELS_FILE, *PART_FILES.values()))
    got = "neither" if not found else f"several: {', '.join(map(str, found[:3]))}"
    raise DatasetError(f"{folder}: expected {files}, or one folder {IMAGE_FOLDER} at any depth, got {got}.")


def warn_of_layout(root: Path, log: ProblemLog) -> None:
    """Warn if PaddleX itself would not find the dataset, which it recognizes by its one folder `images`."""
    found = _image_folders(root)
    if found != [root / IMAGE_FOLDER]:
        log.warning(
            "layout",
            Place("."),
            f"PaddleX itself expects one folder {IMAGE_FOLDER} here and no other below, got "
            f"{', '.join(path.relative_to(root).as_posix() for path in found[:3]) or 'none'}; mlcls needs neither",
        )


def read_content(root: Path, required: tuple[str, ...], log: ProblemLog) -> DatasetContent | None:
    """Read `label.txt` and the annotation files; log what is wrong with them.

    Args:
        root: The dataset.
        required: Parts whose file must exist; the other may be missing.
        log: Where problems go.

    Returns:
        The good lines; None if `label.txt` does not tell the number of labels.
    """
    labels = parse_labels(root / DATASET_LABELS_FILE, DATASET_LABELS_FILE, log)
    if labels is None:
        for name in PART_FILES.values():
            if not (root / name).is_file():
                log.error("missing-file", Place(name), "expected this file, but it does not exist")
        return None
    parts = {}
    for part, name in PART_FILES.items():
        if part in required or (root / name).exists():
            annotations = parse_annotations(root / name, name, len(labels), log)
            if annotations is not None:
                parts[part] = annotations
    return DatasetContent(labels, parts)


def fault_of_name(name: str) -> tuple[str, str] | None:
    """Return kind and message of what is wrong with an image's path as it is written; None if nothing is."""
    if name.startswith("/") or _DRIVE.match(name):
        return "absolute-path", f"expected a path relative to the dataset's folder, got the absolute path {name!r}"
    if ".." in re.split(r"[\\/]", name):
        return "climbing-path", f"expected a path inside the dataset's folder, got {name!r}"
    return None


def _image_folders(folder: Path) -> list[Path]:
    return sorted(Path(parent) / IMAGE_FOLDER for parent, folders, _ in os.walk(folder) if IMAGE_FOLDER in folders)
