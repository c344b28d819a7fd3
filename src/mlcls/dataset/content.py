"""The content of an `MLClsDataset`, and where its files are."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from mlcls.dataset.annotations import TRAIN_FILE, VAL_FILE, Sample, format_annotations, parse_annotations, stack_targets
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
    """A dataset in memory, without its images: labels, the samples of `train` and `val`, and files converted from."""

    labels: tuple[str, ...]
    parts: Mapping[str, Sequence[Sample]]
    retired: Sequence[str] = ()

    @property
    def samples(self) -> list[Sample]:
        """The samples of both parts."""
        return [sample for samples in self.parts.values() for sample in samples]

    def to_files(self) -> dict[str, bytes | None]:
        """Return the content of each file of the dataset by name; None for a file to remove."""
        files: dict[str, bytes | None] = {DATASET_LABELS_FILE: format_labels(self.labels).encode()}
        for part, samples in self.parts.items():
            names = [sample.name for sample in samples]
            files[PART_FILES[part]] = format_annotations(names, stack_targets(samples, len(self.labels))).encode()
        return {**files, **dict.fromkeys(self.retired)}


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
    names = (DATASET_LABELS_FILE, *PART_FILES.values())
    if any((folder / name).exists() for name in (*names, COCO_FOLDER)):
        return folder
    found = _image_folders(folder)
    if len(found) == 1:
        return found[0].parent
    got = "neither" if not found else f"several: {', '.join(map(str, found[:3]))}"
    raise DatasetError(f"{folder}: expected {', '.join(names)}, or one folder {IMAGE_FOLDER} at any depth, got {got}.")


def warn_of_layout(root: Path, log: ProblemLog) -> None:
    """Warn if PaddleX itself would not find the dataset, which it recognizes by its one folder `images`."""
    found = _image_folders(root)
    if found != [root / IMAGE_FOLDER]:
        got = ", ".join(path.relative_to(root).as_posix() for path in found[:3]) or "none"
        message = f"PaddleX itself expects one folder {IMAGE_FOLDER} here and no other below, got {got}"
        log.warning("layout", Place("."), f"{message}; mlcls needs neither")


def read_content(root: Path, required: Sequence[str], log: ProblemLog) -> DatasetContent | None:
    """Return the good lines of `label.txt` and of the annotation files; log what is wrong with the others.

    The required parts must have a file; if none is required, at least one part must. None if `label.txt` does not tell
    the number of labels.
    """
    if (root / COCO_FOLDER).is_dir() and not (root / DATASET_LABELS_FILE).exists():
        log.error(
            "not-converted",
            Place(COCO_FOLDER),
            "this looks like a COCO dataset; convert it with -o CheckDataset.convert.enable=True "
            "-o CheckDataset.convert.src_dataset_type=COCO",
        )
    labels = parse_labels(root / DATASET_LABELS_FILE, DATASET_LABELS_FILE, log)
    if labels is None:
        for name in PART_FILES.values():
            if not (root / name).is_file():
                log.error("missing-file", Place(name), "expected this file, but it does not exist")
        return None
    existing = [part for part, name in PART_FILES.items() if (root / name).exists()]
    parts = {}
    for part, name in PART_FILES.items():
        if part in existing or part in required or not existing:
            samples = parse_annotations(root / name, name, len(labels), log)
            if samples is not None:
                parts[part] = samples
    return DatasetContent(labels, parts)


def check_name(name: str, place: Place, log: ProblemLog) -> None:
    """Log an image's path that leaves the dataset: once the dataset is moved, the image is missing."""
    if name.startswith("/") or _DRIVE.match(name):
        message = f"expected a path relative to the dataset's folder, got the absolute path {name!r}"
        log.defect("absolute-path", place, message)
    elif ".." in re.split(r"[\\/]", name):
        log.defect("climbing-path", place, f"expected a path inside the dataset's folder, got {name!r}")


def _image_folders(folder: Path) -> list[Path]:
    return sorted(Path(parent) / IMAGE_FOLDER for parent, folders, _ in os.walk(folder) if IMAGE_FOLDER in folders)
