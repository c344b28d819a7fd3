"""Check the samples of a dataset against each other: none twice, none in both parts, every label somewhere."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping

import numpy as np

from mlcls.dataset.annotations import Annotations
from mlcls.dataset.content import PART_FILES, TRAIN, VAL, DatasetContent, fault_of_name
from mlcls.dataset.image_inspection import ImageFinding
from mlcls.dataset.problems import Place, ProblemLog


def normalize_name(name: str) -> str:
    """Return an image's path in normal form: `a/b.jpg` for `./a//b.jpg`."""
    return posixpath.normpath(name)


def check_names(content: DatasetContent, log: ProblemLog) -> list[str]:
    """Check the paths of the images as they are written.

    Returns:
        The paths that are safe to open, each once.
    """
    safe: dict[str, None] = {}
    for samples in content.parts.values():
        for name, place in zip(samples.names, samples.places, strict=True):
            fault = fault_of_name(name)
            if fault is None:
                safe.setdefault(name)
            else:
                log.error(fault[0], place, fault[1])
    return list(safe)


def report_images(content: DatasetContent, findings: Mapping[str, ImageFinding], log: ProblemLog) -> None:
    """Log the images that cannot be decoded, at each place that names them."""
    for samples in content.parts.values():
        for name, place in zip(samples.names, samples.places, strict=True):
            finding = findings.get(name)
            if finding is not None and finding.fault:
                log.error(finding.kind, place, f"{name}: {finding.fault}")


def check_repetition(content: DatasetContent, findings: Mapping[str, ImageFinding], log: ProblemLog) -> None:
    """Find samples that occur twice and pictures that are in both parts."""
    first_by_name: dict[str, tuple[str, int]] = {}
    first_by_digest: dict[bytes, tuple[str, int]] = {}
    for part, index, samples in _iterate_samples(content):
        name, place = samples.names[index], samples.places[index]
        earlier = first_by_name.setdefault(normalize_name(name), (part, index))
        if earlier != (part, index):
            _report_same_name(content, earlier, part, index, log)
            continue
        finding = findings.get(name)
        if finding is None or not finding.digest:
            continue
        earlier = first_by_digest.setdefault(finding.digest, (part, index))
        if earlier == (part, index):
            continue
        other = content.parts[earlier[0]]
        same = f"the same picture as {other.names[earlier[1]]} ({other.places[earlier[1]]})"
        if earlier[0] != part:
            message = f"expected no training picture in validation, got {name}, {same}"
            log.error("leaked-picture", place, message)
        else:
            differ = "" if _same_vectors(other, earlier[1], samples, index) else ", with other labels"
            log.warning("duplicate-picture", place, f"{name} is {same}{differ}")


def warn_of_empty_classes(content: DatasetContent, log: ProblemLog) -> None:
    """Warn about labels that no sample of a part has: they cannot be learned, or not be evaluated."""
    consequence = {TRAIN: "it cannot be learned", VAL: "it cannot be evaluated"}
    for part, samples in content.parts.items():
        if not len(samples):
            continue
        for label in np.flatnonzero(~samples.targets.any(axis=0)):
            message = f"no sample has label {label} {content.labels[label]!r}; {consequence[part]}"
            log.warning("empty-class", Place(PART_FILES[part]), message)


def _report_same_name(
    content: DatasetContent, earlier: tuple[str, int], part: str, index: int, log: ProblemLog
) -> None:
    other, samples = content.parts[earlier[0]], content.parts[part]
    name, place, first = samples.names[index], samples.places[index], other.places[earlier[1]]
    differ = "" if _same_vectors(other, earlier[1], samples, index) else ", with other labels"
    if earlier[0] != part:
        message = f"expected each image in one part, got {name}, which is also in the other ({first}{differ})"
        log.error("leaked-path", place, message)
    else:
        message = f"expected each image once, got {name} again (first at {first}{differ})"
        log.error("duplicate-path", place, message)


def _same_vectors(one: Annotations, at: int, other: Annotations, index: int) -> bool:
    return bool(np.array_equal(one.targets[at], other.targets[index]))


def _iterate_samples(content: DatasetContent) -> Iterator[tuple[str, int, Annotations]]:
    for part, samples in content.parts.items():
        for index in range(len(samples)):
            yield part, index, samples
