"""Split a dataset into training and validation samples."""

from __future__ import annotations

import dataclasses
import posixpath
from collections.abc import Mapping

import numpy as np

from mlcls.dataset.annotations import Sample, stack_targets
from mlcls.dataset.content import TRAIN, VAL, DatasetContent
from mlcls.dataset.problems import Place, ProblemLog
from mlcls.dataset.stratification import choose_validation


def split_content(
    content: DatasetContent, digests: Mapping[str, bytes], train_percent: int, seed: int, log: ProblemLog
) -> DatasetContent:
    """Split all samples, no matter how they were split before; the same seed gives the same split.

    Every label keeps its share in both parts as nearly as possible, and copies of one picture, which have the same
    digest, stay together. A sample that occurs twice is kept once, with a warning; with other labels it stays
    twice, on one side. The number of training samples, 1 to 99 percent, is rounded as PaddleX does.
    """
    samples = _merge_parts(content, log)
    if len(samples) < 2:
        log.error("too-few", Place("."), f"expected at least two samples to split, got {len(samples)}")
        return content
    numbers: dict[bytes | str, int] = {}
    keys = (digests.get(sample.name, sample.name) for sample in samples)
    groups = np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.intp)
    train_count = min(max(round(len(samples) * train_percent / 100), 1), len(samples) - 1)
    targets = stack_targets(samples, len(content.labels))
    is_val = choose_validation(targets, groups, len(samples) - train_count, seed)
    if is_val.all() or not is_val.any():
        log.error("too-few", Place("."), "expected at least two different pictures to split, got copies of one")
        return content
    train, val = ([samples[index] for index in np.flatnonzero(mask)] for mask in (~is_val, is_val))
    return dataclasses.replace(content, parts={TRAIN: train, VAL: val})


def _merge_parts(content: DatasetContent, log: ProblemLog) -> list[Sample]:
    """Return all samples in the order of their paths, equal ones once; log what is left out."""
    kept: dict[tuple[str, bytes], Sample] = {}
    for sample in content.samples:
        first = kept.setdefault((posixpath.normpath(sample.name), sample.target.tobytes()), sample)
        if first is not sample:
            message = f"{sample.name} occurs twice (first at {first.place}); the split keeps it once"
            log.warning("duplicate-path", sample.place, message)
    return [kept[key] for key in sorted(kept)]
