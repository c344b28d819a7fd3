"""Mode `check_dataset`: convert, split and check a dataset, and change it only if it passes."""

from __future__ import annotations

import dataclasses
import os
import posixpath
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from mlcls.base.files import staged_folder
from mlcls.dataset.annotations import VAL_FILE, Sample, stack_targets
from mlcls.dataset.coco import read_coco
from mlcls.dataset.content import (
    PART_FILES,
    TRAIN,
    VAL,
    DatasetContent,
    check_name,
    find_dataset,
    read_content,
    warn_of_layout,
)
from mlcls.dataset.image_inspection import inspect_images
from mlcls.dataset.labels import DATASET_LABELS_FILE
from mlcls.dataset.pictures import HISTOGRAM_FILE, require_pictures, write_histogram, write_sample_pictures
from mlcls.dataset.problems import Place, ProblemLog
from mlcls.dataset.split import split_content
from mlcls.dataset.transaction import recover, replace_files

OUTPUT_FOLDER: Final = "check_dataset"


@dataclasses.dataclass
class CheckReport:
    """The outcome of a check: all problems, PaddleX's result if there is no error, and the replaced files' backups."""

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
    strict: bool = False,
) -> CheckReport:
    """Convert and split a dataset in memory as requested, check the outcome, and then write all files.

    A dataset that does not pass is left as it was, and so is an existing `check_dataset` folder.

    Args:
        dataset_dir: The dataset, or the folder that its archive was unpacked to.
        output: Folder for the results.
        convert_coco: Whether to convert the dataset from COCO.
        train_percent: Percentage of training samples in a new split; None keeps the existing split.
        seed: Seed of the split.
        strict: Whether defects of a dataset that can be trained on are errors, too.

    Raises:
        DatasetError: There is no dataset, or a file cannot be written.
        MissingExtraError: A package for the pictures is not installed.
    """
    require_pictures()
    root = find_dataset(dataset_dir)
    recover(root)
    log = ProblemLog(strict=strict)
    report = CheckReport(root, log)
    # a new split makes both parts from whatever there is
    required = tuple(PART_FILES) if train_percent is None else ()
    content = (read_coco if convert_coco else read_content)(root, required, log)
    if content is None:
        return report
    warn_of_layout(root, log)
    if root != dataset_dir:
        log.warning("layout", Place("."), f"the dataset is in {root}; train with this Global.dataset_dir")
    digests = _check_images(root, content, log)
    if train_percent is not None:
        content = split_content(content, digests, train_percent, seed, log)
    _check_repetition(content, digests, log)
    _check_targets(content, log)
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
            files = content.to_files()
            if not convert_coco:
                del files[DATASET_LABELS_FILE]
            report.backups = replace_files(root, files)
    report.result = {
        "attributes": attributes,
        "analysis": {"histogram": f"{OUTPUT_FOLDER}/{HISTOGRAM_FILE}"},
        "dataset_path": root.resolve().name,
        "show_type": "image",
        "dataset_type": "MLClsDataset",
    }
    return report


def examine_dataset(root: Path) -> ProblemLog:
    """Return the problems of a dataset that is used as it is: what `check_dataset` finds in its files and images."""
    log = ProblemLog()
    content = read_content(root, tuple(PART_FILES), log)
    if content is not None:
        digests = _check_images(root, content, log)
        _check_repetition(content, digests, log)
        _check_targets(content, log)
    return log


def _check_images(root: Path, content: DatasetContent, log: ProblemLog) -> dict[str, bytes]:
    """Check the path of each image and decode it; return the digest of each picture that can be used, by its path."""
    findings = inspect_images(root, list(dict.fromkeys(sample.name for sample in content.samples)))
    for sample in content.samples:
        check_name(sample.name, sample.place, log)
        if (finding := findings[sample.name]).fault:
            log.error(finding.kind, sample.place, f"{sample.name}: {finding.fault}")
    return {name: finding.digest for name, finding in findings.items() if finding.digest}


def _check_repetition(content: DatasetContent, digests: Mapping[str, bytes], log: ProblemLog) -> None:
    """Find samples that occur twice and pictures that are in both parts."""
    by_name: dict[str, tuple[str, Sample]] = {}
    by_digest: dict[bytes, tuple[str, Sample]] = {}
    for part, samples in content.parts.items():
        for sample in samples:
            name, place, target = sample
            first_part, first = by_name.setdefault(posixpath.normpath(name), (part, sample))
            is_same_name = first is not sample
            if not is_same_name and name in digests:
                first_part, first = by_digest.setdefault(digests[name], (part, sample))
            if first is sample:
                continue
            differ = "" if np.array_equal(first.target, target) else ", with other labels"
            picture = f"the same picture as {first.name} ({first.place})"
            if is_same_name and first_part != part:
                message = f"expected each image in one part, got {name}, which is also in the other"
                log.defect("leaked-path", place, f"{message} ({first.place}{differ})")
            elif is_same_name:
                message = f"expected each image once, got {name} again (first at {first.place}{differ})"
                log.defect("duplicate-path", place, message)
            elif first_part != part:
                message = f"expected no training picture in validation, got {name}, {picture}"
                log.defect("leaked-picture", place, message)
            else:
                log.defect("duplicate-picture", place, f"{name} is {picture}{differ}")


def _check_targets(content: DatasetContent, log: ProblemLog) -> None:
    """Find labels that no sample of a part has: they cannot be learned, or not be evaluated."""
    for part, samples in content.parts.items():
        use = "learned" if part == TRAIN else "evaluated"
        targets = stack_targets(samples, len(content.labels))
        if part == VAL and len(samples) and not targets.any():
            log.error("no-labels", Place(VAL_FILE), "expected images with labels, got none with any; there is no mAP")
            continue
        for label in np.flatnonzero(~targets.any(axis=0)) if len(samples) else ():
            message = f"no sample has label {label} {content.labels[label]!r}; it cannot be {use}"
            log.defect("empty-class", Place(PART_FILES[part]), message)
