"""Mode `check_dataset`: convert, split and check a dataset, and change it only if it passes."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from mlcls.base.files import staged_folder
from mlcls.dataset.coco import read_coco
from mlcls.dataset.consistency import check_images, check_repetition, warn_of_empty_classes
from mlcls.dataset.content import PART_FILES, find_dataset, read_content, warn_of_layout
from mlcls.dataset.labels import DATASET_LABELS_FILE
from mlcls.dataset.pictures import HISTOGRAM_FILE, require_pictures, write_histogram, write_sample_pictures
from mlcls.dataset.problems import ProblemLog
from mlcls.dataset.split import split_content
from mlcls.dataset.transaction import recover, replace_files

OUTPUT_FOLDER: Final = "check_dataset"


@dataclasses.dataclass
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
    result: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    backups: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether there is no error."""
        return not self.log.errors


def check_dataset(
    dataset_dir: Path,
    output: Path,
    *,
    convert_coco: bool = False,
    train_percent: int | None = None,
    seed: int = 0,
) -> CheckReport:
    """Convert and split a dataset in memory as requested, check the outcome, and then write all files.

    A dataset that does not pass is left as it was, and so is an existing `check_dataset` folder.

    Args:
        dataset_dir: The dataset, or the folder that its archive was unpacked to.
        output: Folder for the results.
        convert_coco: Whether to convert the dataset from COCO.
        train_percent: Percentage of training samples in a new split; None keeps the existing split.
        seed: Seed of the split.

    Raises:
        DatasetError: There is no dataset, or a file cannot be written.
        MissingExtraError: A package for the pictures is not installed.
    """
    require_pictures()
    root = find_dataset(dataset_dir)
    recover(root)
    log = ProblemLog()
    report = CheckReport(root, log)
    # a new split makes both parts from whatever there is
    required = tuple(PART_FILES) if train_percent is None else ()
    files: dict[str, bytes | None] = {}
    if convert_coco:
        content, retired = read_coco(root, required, log)
        files.update(dict.fromkeys(retired))
    else:
        content = read_content(root, required, log)
    if content is None:
        return report
    warn_of_layout(root, log)
    digests = check_images(root, content, log)
    if train_percent is not None:
        content = split_content(content, digests, train_percent, seed, log)
    check_repetition(content, digests, log)
    warn_of_empty_classes(content, log)
    if log.errors:
        return report
    target = output / OUTPUT_FOLDER
    attributes: dict[str, Any] = {
        "label_file": os.path.relpath(root / DATASET_LABELS_FILE, target),
        "num_classes": len(content.labels),
    }
    with staged_folder(target) as folder:
        for part, paths in write_sample_pictures(root, content, folder).items():
            attributes[f"{part}_samples"] = len(content.parts[part])
            attributes[f"{part}_sample_paths"] = [f"{OUTPUT_FOLDER}/{path}" for path in paths]
        write_histogram(content, folder)
        if convert_coco or train_percent is not None:
            new = content.to_files()
            if not convert_coco:
                del new[DATASET_LABELS_FILE]
            report.backups = replace_files(root, {**new, **files})
    report.result = {
        "attributes": attributes,
        "analysis": {"histogram": f"{OUTPUT_FOLDER}/{HISTOGRAM_FILE}"},
        "dataset_path": root.resolve().name,
        "show_type": "image",
        "dataset_type": "MLClsDataset",
    }
    return report
