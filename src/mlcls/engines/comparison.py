"""How far the answers of two runners differ, on real images, in every way in which a batch can go wrong."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
import numpy.typing as npt

from mlcls.engines.gate import LIMITS, NEAR_TIE, Differences, GateReport, Limits
from mlcls.engines.runners import ImageRunner, Scores
from mlcls.errors import ParityError
from mlcls.model.metrics import mean_average_precision, smallest_spread
from mlcls.repository.settings import MAX_BATCH_SIZE

# Batch sizes at which the candidate runs: alone, even, odd, the profile's optimum, the largest.
BATCH_SIZES: Final = (1, 2, 7, 8, MAX_BATCH_SIZE)

# Images that run in all ways; the others run once, in batches of `STREAM_BATCH_SIZE`.
PROBED_IMAGES: Final = 8
STREAM_BATCH_SIZE: Final = 8

# Requests in flight at once, to a candidate that takes several.
CONCURRENCY: Final = 8

Order = list[int]


def run_gate(
    reference: ImageRunner,
    candidate: ImageRunner,
    images: Sequence[bytes],
    thresholds: Sequence[float],
    limits: Limits = LIMITS["fp32"],
    targets: npt.NDArray[np.bool_] | None = None,
    batch_sizes: Sequence[int] = BATCH_SIZES,
) -> GateReport:
    """Run both on the same images and compare.

    The reference answers one image at a time. The candidate answers the first different images at every batch size, in
    repeated and in permuted rows, and in concurrent requests where it takes them, since the answer to an image must
    depend on neither its neighbors nor its slot; then all the others once.

    Args:
        reference: The runner that is right.
        candidate: The runner in question.
        images: Encoded images.
        thresholds: Threshold of each label.
        limits: What is allowed; the report tells what was not kept, `GateReport.require` raises.
        targets: (N, num_labels) which labels each image has, for mAP; None where that is not known.
        batch_sizes: Batch sizes of the candidate.

    Raises:
        ParityError: There are no images, or the candidate gives scores of another shape.
    """
    from tqdm import tqdm

    if not images:
        raise ParityError("Expected at least one image to compare on, got none.")
    if targets is not None and targets.shape != (len(images), len(thresholds)):
        raise ParityError(f"Expected targets {(len(images), len(thresholds))}, got {targets.shape}.")
    probed = _choose_different(images)
    ways = list(_list_ways(len(probed), batch_sizes))
    rest = [index for index in range(len(images)) if targets is not None or index not in probed]
    rows = sum(len(order) for _, _, order in ways) + len(probed) + 2 * len(rest)
    with tqdm(total=rows, desc="comparing", unit="image", leave=False, disable=None) as progress:  # on a terminal only
        comparison = _Comparison(reference, candidate, list(probed.values()), thresholds, progress.update)
        figures = [comparison.run_way(way, size, order) for way, size, order in ways]
        if candidate.concurrency > 1:
            figures.append(comparison.run_at_once())
        figures_of_rest, expected, got = comparison.stream(images, rest)
    figures += figures_of_rest
    reference_map = candidate_map = None
    if targets is not None:
        reference_map = mean_average_precision(expected, targets)
        candidate_map = mean_average_precision(got, targets)
    return GateReport(
        reference.name,
        candidate.name,
        len(images),
        len(thresholds),
        limits,
        tuple(figures),
        smallest_spread(comparison.expected),
        reference_map,
        candidate_map,
        faults=(*_compare_labels(reference, candidate), *comparison.faults),
    )


def _choose_different(images: Sequence[bytes]) -> dict[int, bytes]:
    """Return the first `PROBED_IMAGES` images that are not alike, by index; no more are read than needed."""
    chosen: dict[int, bytes] = {}
    for index, image in enumerate(images):
        if image not in chosen.values():
            chosen[index] = image
        if len(chosen) == PROBED_IMAGES:
            break
    return chosen


def _list_ways(count: int, batch_sizes: Sequence[int]) -> Iterator[tuple[str, int, Order]]:
    """Yield name, batch size and the image in each row, in whole batches."""
    for size in batch_sizes:
        batches = -(-min(count, PROBED_IMAGES) // size)
        yield f"batch {size}", size, [row % count for row in range(batches * size)]
    largest = max(batch_sizes)
    if largest > 1:
        repeated = [0] * min(8, largest)
        yield "repeated rows", len(repeated), [*repeated[:-1], count - 1]
        order = np.random.default_rng(0).permutation(min(8, largest)) % count
        yield "permuted rows", len(order), order.tolist()


class _Comparison:
    """The runners, the answers to single images that all others are held against, and what was found."""

    def __init__(
        self,
        reference: ImageRunner,
        candidate: ImageRunner,
        probed: Sequence[bytes],
        thresholds: Sequence[float],
        advance: Callable[[int], object],
    ) -> None:
        self._reference, self._candidate, self._probed, self._advance = reference, candidate, probed, advance
        self._thresholds = np.asarray(thresholds, np.float32)
        self.faults: list[str] = []
        self.expected = self._run(reference, probed, 1)
        self._own: Scores | None = None

    def run_way(self, way: str, batch_size: int, order: Order) -> Differences:
        """Run the probed images in an order, in batches of a size."""
        got = self._run(self._candidate, [self._probed[index] for index in order], batch_size)
        return self._measure(way, got, order)

    def run_at_once(self) -> Differences:
        """Run the probed images as requests of one image, several in flight, each of them several times."""
        order = [index % len(self._probed) for index in range(4 * CONCURRENCY)]
        with ThreadPoolExecutor(CONCURRENCY) as pool:
            rows = list(pool.map(lambda index: self._candidate.scores([self._probed[index]]), order))
        return self._measure(f"{CONCURRENCY} requests at once", np.concatenate(rows), order)

    def stream(self, images: Sequence[bytes], indices: Sequence[int]) -> tuple[list[Differences], Scores, Scores]:
        """Run further images once, a few in memory at a time; give their figures and both scores."""
        if not indices:
            return [], self.expected, self.expected
        expected, got = [], []
        for start in range(0, len(indices), STREAM_BATCH_SIZE):
            batch = [images[index] for index in indices[start : start + STREAM_BATCH_SIZE]]
            expected.append(self._run(self._reference, batch, 1))
            got.append(self._run(self._candidate, batch, STREAM_BATCH_SIZE))
        all_expected, all_got = np.concatenate(expected), np.concatenate(got)
        return [self._compare("all images", all_got, all_expected, 0.0)], all_expected, all_got

    def _run(self, runner: ImageRunner, images: Sequence[bytes], batch_size: int) -> Scores:
        rows = []
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            scores = runner.scores(batch)
            wanted = (len(batch), len(self._thresholds))
            if scores.shape != wanted:
                raise ParityError(f"Expected scores {wanted} of {runner.name}, got {scores.shape}.")
            rows.append(scores)
            self._advance(len(batch))
        return np.concatenate(rows)

    def _measure(self, way: str, got: Scores, order: Order) -> Differences:
        if self._own is None:  # the first way is batch 1, in order
            self._own = got
        figures = self._compare(way, got, self.expected[order], float(_distances(got, self._own[order]).max()))
        return dataclasses.replace(figures, is_partial=len(set(order)) < len(self._probed))

    def _compare(self, way: str, got: Scores, expected: Scores, row_difference: float) -> Differences:
        if not np.isfinite(got).all():
            self.faults.append(f"{way}: {int((~np.isfinite(got)).sum())} scores of {got.size} are no finite numbers")
        differences = _distances(got, expected)
        flips = (got > self._thresholds) != (expected > self._thresholds)
        near = np.abs(expected.astype(np.float64) - self._thresholds) <= NEAR_TIE
        return Differences(
            way,
            len(got),
            float(differences.max()),
            float(differences.mean()),
            int((flips & ~near).sum()),
            int((flips & near).sum()),
            row_difference,
        )


def _distances(one: Scores, other: Scores) -> npt.NDArray[np.float64]:
    with np.errstate(invalid="ignore"):  # infinity minus infinity is NaN, which no limit lets pass
        distances: npt.NDArray[np.float64] = np.abs(one.astype(np.float64) - other.astype(np.float64))
    return distances


def _compare_labels(reference: ImageRunner, candidate: ImageRunner) -> list[str]:
    """Return what is wrong with the candidate's labels, in words."""
    pairs = itertools.zip_longest(reference.labels, candidate.labels)
    different = [(index, one, other) for index, (one, other) in enumerate(pairs) if one != other]
    if not different:
        return []
    index, one, other = different[0]
    return [f"{len(different)} labels differ, the first is class {index}: {other!r} instead of {one!r}"]
