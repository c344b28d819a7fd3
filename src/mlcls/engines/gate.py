"""The gate: compare the answers of two runners on real images, in every way in which a batch can go wrong.

`run_gate` runs both and returns a `GateReport`, which knows the limits that the candidate must keep.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mlcls.engines.runners import ImageRunner, Scores
from mlcls.errors import ParityError
from mlcls.model.metrics import mean_average_precision, smallest_spread
from mlcls.repository.manifest import Precision
from mlcls.repository.settings import MAX_BATCH_SIZE

# Batch sizes at which the candidate runs: alone, even, odd, the profile's optimum, the largest.
BATCH_SIZES: Final = (1, 2, 7, 8, MAX_BATCH_SIZE)

# Images that run in all ways; the others run once, in batches of `STREAM_BATCH_SIZE`.
PROBED_IMAGES: Final = 8
STREAM_BATCH_SIZE: Final = 8

# Requests in flight at once, to a candidate that takes several.
CONCURRENCY: Final = 8

# A decision on a reference score this close to the threshold is rounding, in any precision.
NEAR_TIE: Final = 1e-4

# How many limits the scores of two images must differ by, for answers swapped between them to be noticed.
MIN_SPREAD_IN_LIMITS: Final = 5.0


@dataclasses.dataclass(frozen=True)
class Limits:
    """How far a candidate may differ from its reference.

    Attributes:
        max_difference: Highest absolute difference of two scores.
        max_mean_difference: Mean absolute difference over all scores.
        max_row_difference: Highest difference between a candidate's own answers to one image: alone, in a batch, in
            another slot, beside other images.
        max_flip_rate: Share of all label decisions that may flip, near ties aside.
        max_map_drop: How far mean average precision may fall, from 0 to 1; only if labels are known.
    """

    max_difference: float
    max_mean_difference: float
    max_row_difference: float
    max_flip_rate: float
    max_map_drop: float


# Rounding differs between engines by up to 5e-5 in float32. In float16 a logit has 11 bits: at 8 it moves by 4e-3, and
# a network adds up some of these: freshly initialized ones, which amplify any change (noise of one level on the pixels
# moves their scores by 0.06 to 0.29), by up to 4.4e-2, 6e-3 on average and 1.3% flips, most of it from rounding
# the weights. Eight bits are a trade: flips and mAP decide, not single scores.
LIMITS: Final[Mapping[Precision, Limits]] = {
    "fp32": Limits(1e-4, 2e-5, 1e-4, 0.0, 1e-4),
    "fp16": Limits(5e-2, 1e-2, 1e-2, 2e-2, 2e-3),
    "int8": Limits(0.5, 2e-2, 1e-2, 2e-2, 1e-2),
}


@dataclasses.dataclass(frozen=True)
class Differences:
    """How far one way of running the candidate differs from the reference's answers to single images.

    Attributes:
        way: `batch 7`, `repeated rows`, `permuted rows`, `8 requests at once`.
        rows: Number of answers.
        max_difference: Highest absolute difference of two scores.
        mean_difference: Mean absolute difference.
        flips: Labels that one predicts and the other does not, near ties aside.
        near_ties: Flipped labels whose reference score is within `NEAR_TIE` of the threshold.
        row_difference: Highest difference from the candidate's own answers to single images.
        is_partial: Whether only some of the images ran, one of them many times. The flips are then not a share of all
            decisions: they are judged in the ways that run every image, and by `row_difference` here.
    """

    way: str
    rows: int
    max_difference: float
    mean_difference: float
    flips: int
    near_ties: int
    row_difference: float
    is_partial: bool = False


@dataclasses.dataclass(frozen=True)
class GateReport:
    """What the gate found.

    Attributes:
        reference: Name of the reference runner.
        candidate: Name of the runner that was compared with it.
        images: Number of images.
        labels: Number of labels.
        limits: What was allowed.
        figures: The differences in each way of running the candidate.
        spread: Smallest difference between the reference's scores of two probed images (highest over labels).
        reference_map: Mean average precision of the reference; None if no labels are known.
        candidate_map: That of the candidate.
        faults: What is wrong apart from the limits: labels in another order, scores that are not finite.
    """

    reference: str
    candidate: str
    images: int
    labels: int
    limits: Limits
    figures: tuple[Differences, ...]
    spread: float
    reference_map: float | None = None
    candidate_map: float | None = None
    faults: tuple[str, ...] = ()

    @property
    def max_difference(self) -> float:
        """Highest absolute difference of two scores, over all ways; NaN if a score is NaN."""
        differences = [figure.max_difference for figure in self.figures]
        return math.nan if not differences or any(map(math.isnan, differences)) else max(differences)

    @property
    def mean_difference(self) -> float:
        """Mean absolute difference over all answers."""
        rows = sum(figure.rows for figure in self.figures)
        return sum(figure.mean_difference * figure.rows for figure in self.figures) / rows if rows else math.nan

    @property
    def flip_rate(self) -> float:
        """Highest share of flipped label decisions, of all ways that run every image."""
        whole = [figure for figure in self.figures if not figure.is_partial]
        return max((figure.flips / (figure.rows * self.labels) for figure in whole), default=math.nan)

    @property
    def flips(self) -> int:
        """Highest number of flipped labels, of all ways."""
        return max((figure.flips for figure in self.figures), default=0)

    @property
    def map_drop(self) -> float | None:
        """How far mean average precision falls; None if no labels are known."""
        if self.reference_map is None or self.candidate_map is None:
            return None
        return self.reference_map - self.candidate_map

    @property
    def is_blind(self) -> bool:
        """Whether the scores of two images differ so little that answers swapped between them would pass."""
        return not self.spread >= MIN_SPREAD_IN_LIMITS * min(self.limits.max_difference, 1e-2)

    @property
    def failures(self) -> tuple[str, ...]:
        """Every fault and every limit that was exceeded; empty if the candidate passed."""
        limits = self.limits
        found = list(self.faults)
        for figure in self.figures:
            # `not <=` is true of NaN too
            if not figure.max_difference <= limits.max_difference:
                found.append(
                    f"{figure.way}: highest difference {figure.max_difference:.1e} > {limits.max_difference:.0e}"
                )
            if not figure.mean_difference <= limits.max_mean_difference:
                found.append(
                    f"{figure.way}: mean difference {figure.mean_difference:.1e} > {limits.max_mean_difference:.0e}"
                )
            if not figure.row_difference <= limits.max_row_difference:
                found.append(
                    f"{figure.way}: an image's answer changes by {figure.row_difference:.1e} with its neighbors or "
                    f"its slot > {limits.max_row_difference:.0e}"
                )
            # if no flip is allowed, none is allowed in any way
            is_share = not figure.is_partial or not limits.max_flip_rate
            if is_share and figure.flips > limits.max_flip_rate * figure.rows * self.labels:
                found.append(
                    f"{figure.way}: {figure.flips} of {figure.rows * self.labels} label decisions flip > "
                    f"{limits.max_flip_rate:.1%}"
                )
        if self.map_drop is not None and not self.map_drop <= limits.max_map_drop:
            found.append(f"mAP falls by {self.map_drop:.4f} > {limits.max_map_drop}")
        return tuple(found)

    def require(self, advice: str = "") -> None:
        """Raise an error unless the candidate passed.

        Args:
            advice: What to do, appended to the error.

        Raises:
            ParityError: It failed; the text has the first failures.
        """
        failures = self.failures
        if failures:
            more = f"; and {len(failures) - 3} more" if len(failures) > 3 else ""
            raise ParityError(
                f"Expected {self.candidate} to give the answers of {self.reference}, got: {'; '.join(failures[:3])}"
                f"{more}. {advice}".rstrip()
            )

    def __str__(self) -> str:
        text = (
            f"{self.candidate} against {self.reference} on {self.images} images: highest difference "
            f"{self.max_difference:.1e}, mean {self.mean_difference:.1e}, {self.flips} flipped labels"
        )
        if self.map_drop is not None:
            text += f", mAP {self.candidate_map:.4f} instead of {self.reference_map:.4f}"
        return text

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values, derived figures included."""
        return {
            **dataclasses.asdict(self),
            "max_difference": self.max_difference,
            "mean_difference": self.mean_difference,
            "flip_rate": self.flip_rate,
            "map_drop": self.map_drop,
            "failures": list(self.failures),
        }

    def to_table(self) -> str:
        """Return the differences as a table for a terminal."""
        head = f"{'':22}{'answers':>8}{'highest':>10}{'mean':>10}{'flips':>7}{'ties':>6}{'own rows':>10}"
        rows = [
            f"{figure.way:22}{figure.rows:8}{figure.max_difference:10.1e}{figure.mean_difference:10.1e}"
            f"{figure.flips:7}{figure.near_ties:6}{figure.row_difference:10.1e}"
            for figure in self.figures
        ]
        return "\n".join([head, *rows])


def run_gate(
    reference: ImageRunner,
    candidate: ImageRunner,
    images: Sequence[bytes],
    thresholds: Sequence[float],
    limits: Limits = LIMITS["fp32"],
    targets: npt.NDArray[np.bool_] | None = None,
    batch_sizes: Sequence[int] = BATCH_SIZES,
) -> GateReport:
    """Run two runners on the same images and compare their answers.

    The reference answers one image at a time. The candidate answers the first different images at every batch size, in
    repeated and permuted rows, and in concurrent requests if it takes them, because an image's answer must not depend
    on its neighbors or its slot; then all the others once.

    Args:
        reference: The runner whose answers are right.
        candidate: The runner to check.
        images: Encoded images.
        thresholds: Threshold of each label.
        limits: What is allowed. The report lists what exceeds them; only `GateReport.require` raises.
        targets: (N, num_labels) which labels each image has, for mAP; None if not known.
        batch_sizes: Batch sizes of the candidate.

    Raises:
        ParityError: There are no images, the targets have another shape, or a runner returns scores of another shape.
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
    """Return the first `PROBED_IMAGES` different images by index; read no more than needed."""
    chosen: dict[int, bytes] = {}
    for index, image in enumerate(images):
        if image not in chosen.values():
            chosen[index] = image
        if len(chosen) == PROBED_IMAGES:
            break
    return chosen


def _list_ways(count: int, batch_sizes: Sequence[int]) -> Iterator[tuple[str, int, list[int]]]:
    """Yield name, batch size, and the image of each row, in whole batches."""
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
    """The runners, the answers to single images that all others are compared with, and the faults found."""

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

    def run_way(self, way: str, batch_size: int, order: list[int]) -> Differences:
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
        """Run further images once, a few in memory at a time; return the differences and both scores."""
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

    def _measure(self, way: str, got: Scores, order: list[int]) -> Differences:
        if self._own is None:  # the first way is batch 1, in order
            self._own = got
        figures = self._compare(way, got, self.expected[order], float(_distances(got, self._own[order]).max()))
        return dataclasses.replace(figures, is_partial=len(set(order)) < len(self._probed))

    def _compare(self, way: str, got: Scores, expected: Scores, row_difference: float) -> Differences:
        if not np.isfinite(got).all():
            self.faults.append(f"{way}: {int((~np.isfinite(got)).sum())} of {got.size} scores are not finite")
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
    with np.errstate(invalid="ignore"):  # infinity minus infinity is NaN, which passes no limit
        distances: npt.NDArray[np.float64] = np.abs(one.astype(np.float64) - other.astype(np.float64))
    return distances


def _compare_labels(reference: ImageRunner, candidate: ImageRunner) -> list[str]:
    """Return what is wrong with the candidate's labels."""
    pairs = itertools.zip_longest(reference.labels, candidate.labels)
    different = [(index, one, other) for index, (one, other) in enumerate(pairs) if one != other]
    if not different:
        return []
    index, one, other = different[0]
    return [f"{len(different)} labels differ, the first is class {index}: {other!r} instead of {one!r}"]
