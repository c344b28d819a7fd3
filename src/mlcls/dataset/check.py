"""Mode `check_dataset`: convert, split and check a dataset, and change it only if it passes."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from mlcls.base.files import staged_folder
from mlcls.dataset import coco
from mlcls.dataset.consistency import check_names, check_repetition, report_images, warn_of_empty_classes
from mlcls.dataset.content import (
    COCO_FOLDER,
    PART_FILES,
    TRAIN,
    VAL,
    DatasetContent,
    find_dataset,
    read_content,
    warn_of_layout,
)
from mlcls.dataset.image_inspection import inspect_images
from mlcls.dataset.labels import DATASET_LABELS_FILE
from mlcls.dataset.pictures import require_pictures, write_histogram, write_sample_pictures
from mlcls.dataset.problems import Place, ProblemLog
from mlcls.dataset.split import split_content
from mlcls.dataset.transaction import BACKUP_SUFFIX, recover, replace_files

OUTPUT_FOLDER: Final = "check_dataset"


@dataclasses.dataclass(frozen=True)
class CheckRequest:
    """What to do with a dataset.

    Attributes:
        dataset_dir: The dataset, or the folder that its archive was unpacked to.
        output: Folder for the results.
        convert_coco: Whether to convert the dataset from COCO.
        train_percent: Percentage of training samples in a new split; None keeps the existing split.
        seed: Seed of the split.
    """

    dataset_dir: Path
    output: Path
    convert_coco: bool = False
    train_percent: int | None = None
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class CheckReport:
    """The outcome of a check.

    Attributes:
        root: The dataset.
        log: All problems.
        result: PaddleX's result; empty if the dataset did not pass.
        backups: Name of the backup of each file that was replaced.
    """

    root: Path
    log: ProblemLog
    result: Mapping[str, Any]
    backups: Mapping[str, str]

    @property
    def passed(self) -> bool:
        """Whether there is no error."""
        return not self.log.errors


def check_dataset(request: CheckRequest) -> CheckReport:
    """Convert and split a dataset in memory as requested, check the outcome, and then write all files.

    A dataset that does not pass is left as it was, and so is an existing `check_dataset` folder.

    Raises:
        DatasetError: There is no dataset, or a file cannot be written.
        MissingExtraError: A package for the pictures is not installed.
    """
    require_pictures()
    root = find_dataset(request.dataset_dir)
    recover(root)
    log = ProblemLog()
    content, retired = _read(root, request, log)
    if content is None:
        return CheckReport(root, log, {}, {})
    warn_of_layout(root, log)
    findings = inspect_images(root, check_names(content, log))
    report_images(content, findings, log)
    if request.train_percent is not None:
        content = split_content(content, findings, request.train_percent, request.seed, log)
    check_repetition(content, findings, log)
    warn_of_empty_classes(content, log)
    if log.errors:
        return CheckReport(root, log, {}, {})
    return _write(root, request, content, retired, log)


def _read(root: Path, request: CheckRequest, log: ProblemLog) -> tuple[DatasetContent | None, list[str]]:
    """Return the dataset, and the files to remove."""
    both = (TRAIN, VAL)
    # a new split makes both parts from whatever there is
    required = both if request.train_percent is None else ()
    if not request.convert_coco:
        if not required and not any((root / PART_FILES[part]).exists() for part in both):
            required = both
        if (root / COCO_FOLDER).is_dir() and not (root / DATASET_LABELS_FILE).exists():
            log.error(
                "not-converted",
                Place(COCO_FOLDER),
                "this looks like a COCO dataset; convert it with -o CheckDataset.convert.enable=True "
                "-o CheckDataset.convert.src_dataset_type=COCO",
            )
        return read_content(root, required, log), []
    files = coco.find_coco_files(root, required, log)
    if not files and not log.errors:
        files = coco.find_coco_files(root, both, log)
    content = None if log.errors else coco.read_coco(root, files, log)
    return content, [file.name for file in files.values() if not file.name.endswith(BACKUP_SUFFIX)]


def _write(
    root: Path, request: CheckRequest, content: DatasetContent, retired: list[str], log: ProblemLog
) -> CheckReport:
    with staged_folder(request.output / OUTPUT_FOLDER) as folder:
        samples = write_sample_pictures(root, content, folder)
        histogram = write_histogram(content, folder)
        backups = {}
        if request.convert_coco or request.train_percent is not None:
            files: dict[str, bytes | None] = {**content.to_files(), **dict.fromkeys(retired)}
            if not request.convert_coco:
                del files[DATASET_LABELS_FILE]
            backups = replace_files(root, files)
    target = request.output / OUTPUT_FOLDER
    attributes: dict[str, Any] = {
        "label_file": os.path.relpath(root / DATASET_LABELS_FILE, target),
        "num_classes": len(content.labels),
    }
    for part in PART_FILES:
        attributes[f"{part}_samples"] = len(content.parts[part])
        attributes[f"{part}_sample_paths"] = [f"{OUTPUT_FOLDER}/{path}" for path in samples[part]]
    result = {
        "attributes": attributes,
        "analysis": {"histogram": f"{OUTPUT_FOLDER}/{histogram}"},
        "dataset_path": root.resolve().name,
        "show_type": "image",
        "dataset_type": "MLClsDataset",
    }
    return CheckReport(root, log, result, backups)
