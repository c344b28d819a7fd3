"""Split a dataset into training and validation samples."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from mlcls.dataset.annotations import Annotations
from mlcls.dataset.consistency import normalize_name
from mlcls.dataset.content import TRAIN, VAL, DatasetContent
from mlcls.dataset.image_inspection import ImageFinding
from mlcls.dataset.problems import Place, ProblemLog
from mlcls.dataset.stratification import choose_validation


def split_content(
    content: DatasetContent,
    findings: Mapping[str, ImageFinding],
    train_percent: int,
    seed: int,
    log: ProblemLog,
) -> DatasetContent:
    """Split all samples, no matter how they were split before.

    Every label keeps its share in both parts as nearly as possible, and copies of one picture stay together. A sample
    that occurs twice is kept once, with a warning; with different labels it is an error.

    Args:
        content: The dataset.
        findings: A finding for every image.
        train_percent: Percentage of training samples, 1 to 99; their number is rounded as PaddleX does.
        seed: The same seed gives the same split.
        log: Where problems go.
    """
    samples = _merge_parts(content, log)
    if len(samples) < 2:
        log.error("too-few", Place("."), f"expected at least two samples to split, got {len(samples)}")
        return content
    groups = _number_pictures(samples, findings)
    train_count = min(max(round(len(samples) * train_percent / 100), 1), len(samples) - 1)
    is_val = choose_validation(samples.targets, groups, len(samples) - train_count, seed)
    if is_val.all() or not is_val.any():
        log.error("too-few", Place("."), "expected at least two different pictures to split, got copies of one")
        return content
    return DatasetContent(content.labels, {TRAIN: _select(samples, ~is_val), VAL: _select(samples, is_val)})


def _merge_parts(content: DatasetContent, log: ProblemLog) -> Annotations:
    """Return all samples in the order of their paths, each once."""
    merged: dict[str, tuple[Annotations, int]] = {}
    for part in content.parts.values():
        for index, (name, place) in enumerate(zip(part.names, part.places, strict=True)):
            first, at = merged.setdefault(normalize_name(name), (part, index))
            if first is part and at == index:
                continue
            if np.array_equal(first.targets[at], part.targets[index]):
                message = f"{name} occurs twice (first at {first.places[at]}); the split keeps it once"
                log.warning("duplicate-path", place, message)
            else:
                message = f"expected each image once, got {name} again with other labels (first at {first.places[at]})"
                log.error("duplicate-path", place, message)
    chosen = [merged[key] for key in sorted(merged)]
    return Annotations(
        names=tuple(part.names[index] for part, index in chosen),
        places=tuple(part.places[index] for part, index in chosen),
        targets=np.array([part.targets[index] for part, index in chosen], dtype=np.bool_).reshape(
            len(chosen), len(content.labels)
        ),
    )


def _number_pictures(
    samples: Annotations, findings: Mapping[str, ImageFinding]
) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    """Return a number for each sample, the same for copies of one picture."""
    numbers: dict[bytes | str, int] = {}
    keys = (findings[name].digest or name if name in findings else name for name in samples.names)
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.intp)


def _select(samples: Annotations, mask: npt.NDArray[np.bool_]) -> Annotations:
    chosen = np.flatnonzero(mask)
    return Annotations(
        names=tuple(samples.names[index] for index in chosen),
        places=tuple(samples.places[index] for index in chosen),
        targets=samples.targets[mask],
    )
