"""Check the samples of a dataset: every image can be used, none is there twice, every label is somewhere."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mlcls.dataset.annotations import Sample, stack_targets
from mlcls.dataset.content import PART_FILES, TRAIN, DatasetContent, check_name
from mlcls.dataset.image_inspection import inspect_images
from mlcls.dataset.problems import Place, ProblemLog


def check_images(root: Path, content: DatasetContent, log: ProblemLog) -> dict[str, bytes]:
    """Check the path of each image, and decode it.

    Returns:
        The digest of each picture that can be used, by its path; the same for copies.
    """
    names = dict.fromkeys(sample.name for sample in content.samples if check_name(sample.name, sample.place, log))
    findings = inspect_images(root, list(names))
    for sample in content.samples:
        finding = findings.get(sample.name)
        if finding is not None and finding.fault:
            log.error(finding.kind, sample.place, f"{sample.name}: {finding.fault}")
    return {name: finding.digest for name, finding in findings.items() if finding.digest}


def check_repetition(content: DatasetContent, digests: Mapping[str, bytes], log: ProblemLog) -> None:
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
                log.error("leaked-path", place, f"{message} ({first.place}{differ})")
            elif is_same_name:
                message = f"expected each image once, got {name} again (first at {first.place}{differ})"
                log.error("duplicate-path", place, message)
            elif first_part != part:
                message = f"expected no training picture in validation, got {name}, {picture}"
                log.error("leaked-picture", place, message)
            else:
                log.warning("duplicate-picture", place, f"{name} is {picture}{differ}")


def warn_of_empty_classes(content: DatasetContent, log: ProblemLog) -> None:
    """Warn about labels that no sample of a part has: they cannot be learned, or not be evaluated."""
    for part, samples in content.parts.items():
        use = "learned" if part == TRAIN else "evaluated"
        targets = stack_targets(samples, len(content.labels))
        for label in np.flatnonzero(~targets.any(axis=0)) if len(samples) else ():
            message = f"no sample has label {label} {content.labels[label]!r}; it cannot be {use}"
            log.warning("empty-class", Place(PART_FILES[part]), message)
