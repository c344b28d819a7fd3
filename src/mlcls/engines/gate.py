"""The gate: compare the answers of two runners on real images, in every way in which a batch can go wrong.

`run_gate` runs both and returns a `GateReport`, which knows the limits that the candidate must keep.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
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


# What is limited in each way of running the candidate: the figure, its limit, and the text of a failure.
_LIMITED: Final = (
    ("max_difference", "max_difference", "highest difference {:.1e} > {:.0e}"),
    ("mean_difference", "max_mean_difference", "mean difference {:.1e} > {:.0e}"),
    (
        "row_difference",
        "max_row_difference",
        "an image's answer changes by {:.1e} with its neighbors or its slot > {:.0e}",
    ),
)


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
    row_difference: float = 0.0
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
        return float(np.max([figure.max_difference for figure in self.figures]))

    @property
    def mean_difference(self) -> float:
        """Mean absolute difference over all answers."""
        rows = sum(figure.rows for figure in self.figures)
        return sum(figure.mean_difference * figure.rows for figure in self.figures) / rows

    @property
    def flip_rate(self) -> float:
        """Highest share of flipped label decisions, of all ways that run every image."""
        return max(each.flips / (each.rows * self.labels) for each in self.figures if not each.is_partial)

    @property
    def flips(self) -> int:
        """Highest number of flipped labels, of all ways."""
        return max(figure.flips for figure in self.figures)

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
            for name, limit_name, text in _LIMITED:
                value, limit = getattr(figure, name), getattr(limits, limit_name)
                if not value <= limit:  # true of NaN too
                    found.append(f"{figure.way}: {text.format(value, limit)}")
            decisions = figure.rows * self.labels
            # if no flip is allowed, none is allowed in any way
            is_share = not figure.is_partial or not limits.max_flip_rate
            if is_share and figure.flips > limits.max_flip_rate * decisions:
                found.append(
                    f"{figure.way}: {figure.flips} of {decisions} label decisions flip > {limits.max_flip_rate:.1%}"
                )
        if self.map_drop is not None and not self.map_drop <= limits.max_map_drop:
            found.append(f"mAP falls by {self.map_drop:.4f} > {limits.max_map_drop}")
        return tuple(found)

    def require(self, advice: str = "") -> None:
        """Raise the error of `error` unless the candidate passed."""
        if self.failures:
            raise self.error(advice)

    def error(self, advice: str = "") -> ParityError:
        """Return an error with the first failures, then what to do."""
        failures = self.failures
        more = f"; and {len(failures) - 3} more" if len(failures) > 3 else ""
        return ParityError(
            f"Expected {self.candidate} to give the answers of {self.reference}, got: {'; '.join(failures[:3])}{more}. "
            f"{advice}".rstrip()
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
        derived = ("max_difference", "mean_difference", "flip_rate", "map_drop")
        return {
            **dataclasses.asdict(self),
            **{name: getattr(self, name) for name in derived},
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

    The images are encoded, and the thresholds those of each label; `targets` (N, num_labels), for mAP, say which labels
    each image has. The report lists what exceeds the limits; only `GateReport.require` raises.

    Raises:
        ParityError: There are no images, the targets have another shape, or a runner returns scores of another shape.
    """
    from tqdm import tqdm

    if not images:
        raise ParityError("Expected at least one image to compare on, got none.")
    if targets is not None and targets.shape != (len(images), len(thresholds)):
        raise ParityError(f"Expected targets {(len(images), len(thresholds))}, got {targets.shape}.")
    probed = _choose_different(images)
    photos = list(probed.values())
    ways = list(_list_ways(len(photos), batch_sizes))
    rest = [index for index in range(len(images)) if targets is not None or index not in probed]
    total = sum(len(order) for _, _, order in ways) + len(photos) + 2 * len(rest)
    threshold_row = np.asarray(thresholds, np.float32)
    with tqdm(total=total, desc="comparing", unit="image", leave=False, disable=None) as progress:  # on a terminal only

        def run(runner: ImageRunner, encoded: Sequence[bytes], batch_size: int) -> Scores:
            rows = []
            for start in range(0, len(encoded), batch_size):
                batch = encoded[start : start + batch_size]
                rows.append(runner.scores(batch))
                wanted = (len(batch), len(thresholds))
                if rows[-1].shape != wanted:
                    raise ParityError(f"Expected scores {wanted} of {runner.name}, got {rows[-1].shape}.")
                progress.update(len(batch))
            return np.concatenate(rows)

        expected = run(reference, photos, 1)
        answers = [(way, order, run(candidate, [photos[row] for row in order], size)) for way, size, order in ways]
        if candidate.concurrency > 1:
            order = [row % len(photos) for row in range(4 * CONCURRENCY)]
            with ThreadPoolExecutor(CONCURRENCY) as pool:
                rows = list(pool.map(lambda row: candidate.scores([photos[row]]), order))
            answers.append((f"{CONCURRENCY} requests at once", order, np.concatenate(rows)))
        streamed = []
        for start in range(0, len(rest), STREAM_BATCH_SIZE):  # a few in memory at a time
            batch = [images[index] for index in rest[start : start + STREAM_BATCH_SIZE]]
            streamed.append((run(reference, batch, 1), run(candidate, batch, STREAM_BATCH_SIZE)))
    own = answers[0][2]  # those to batch 1, in order
    figures = [
        dataclasses.replace(
            _compare(way, got, expected[order], threshold_row),
            row_difference=float(_distances(got, own[order]).max()),
            is_partial=len(set(order)) < len(photos),
        )
        for way, order, got in answers
    ]
    pairs = itertools.zip_longest(reference.labels, candidate.labels)
    different = [(index, one, other) for index, (one, other) in enumerate(pairs) if one != other]
    faults = [
        f"{len(different)} labels differ, the first is class {index}: {other!r} instead of {one!r}"
        for index, one, other in different[:1]
    ]
    reference_map = candidate_map = None
    if streamed:
        all_expected, all_got = map(np.concatenate, zip(*streamed, strict=True))
        figures.append(_compare("all images", all_got, all_expected, threshold_row))
        answers.append(("all images", rest, all_got))
        if targets is not None:
            reference_map = mean_average_precision(all_expected, targets)
            candidate_map = mean_average_precision(all_got, targets)
    faults += [
        f"{way}: {int((~np.isfinite(got)).sum())} of {got.size} scores are not finite"
        for way, _, got in answers
        if not np.isfinite(got).all()
    ]
    return GateReport(
        reference.name,
        candidate.name,
        len(images),
        len(thresholds),
        limits,
        tuple(figures),
        smallest_spread(expected),
        reference_map,
        candidate_map,
        tuple(faults),
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
    """Yield name, batch size, and which of the probed images each row is, in whole batches."""
    for size in batch_sizes:
        yield f"batch {size}", size, [row % count for row in range(-(-count // size) * size)]
    rows = min(8, max(batch_sizes))
    if rows > 1:
        yield "repeated rows", rows, [*[0] * (rows - 1), count - 1]
        yield "permuted rows", rows, (np.random.default_rng(0).permutation(rows) % count).tolist()


def _compare(way: str, got: Scores, expected: Scores, thresholds: Scores) -> Differences:
    differences = _distances(got, expected)
    flips = (got > thresholds) != (expected > thresholds)
    near = np.abs(expected.astype(np.float64) - thresholds) <= NEAR_TIE
    return Differences(
        way,
        len(got),
        float(differences.max()),
        float(differences.mean()),
        int((flips & ~near).sum()),
        int((flips & near).sum()),
    )


def _distances(one: Scores, other: Scores) -> npt.NDArray[np.float64]:
    with np.errstate(invalid="ignore"):  # infinity minus infinity is NaN, which passes no limit
        distances: npt.NDArray[np.float64] = np.abs(one.astype(np.float64) - other.astype(np.float64))
    return distances
