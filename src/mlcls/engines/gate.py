"""The gate: what a comparison of two runners found, and the limits that it must keep."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Final

from mlcls.errors import ParityError
from mlcls.repository.manifest import Precision

# The least by which the scores of two images must differ, in limits, for answers exchanged between them to be seen.
MIN_SPREAD_IN_LIMITS: Final = 5.0


@dataclasses.dataclass(frozen=True)
class Limits:
    """How far a candidate may be from its reference.

    Attributes:
        max_difference: Highest absolute difference of two scores.
        max_mean_difference: Mean absolute difference over all scores.
        max_row_difference: Highest difference between a candidate's own answers to one image: alone, in a batch, in
            another slot, beside other images.
        max_flip_rate: Share of all label decisions that may turn over, near ties aside.
        max_map_drop: By how much mean average precision may fall, in points of 1; only where labels are known.
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

# Decisions on reference scores this close to the threshold are rounding, in any precision.
NEAR_TIE: Final = 1e-4


@dataclasses.dataclass(frozen=True)
class Differences:
    """One way of running the candidate, against the reference's answers to single images.

    Attributes:
        way: `batch 7`, `repeated rows`, `permuted rows`, `8 requests at once`.
        rows: Number of answers.
        max_difference: Highest absolute difference of two scores.
        mean_difference: Mean absolute difference.
        flips: Labels that one predicts and the other does not, near ties aside.
        near_ties: Labels whose reference score is within `NEAR_TIE` of the threshold and that turn over.
        row_difference: Highest difference to the candidate's own answers to single images.
        is_partial: Whether only some of the images ran, one of them many times: its flips are then no share of all
            decisions. They are judged where every image runs, and by `row_difference` here.
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
    """Two runners' answers to the same images, compared.

    Attributes:
        reference: Name of the reference runner.
        candidate: Name of the runner that is held against it.
        images: Number of images.
        labels: Number of labels.
        limits: What was allowed.
        figures: One for each way of running the candidate.
        spread: The least by which the reference's scores of any two of the probed images differ (highest over labels).
        reference_map: Mean average precision of the reference; None where no labels are known.
        candidate_map: That of the candidate.
        faults: What is wrong beside figures above the limits: labels in another order, scores that are no numbers.
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
        """Highest absolute difference of two scores, over all ways; NaN where scores are no numbers."""
        differences = [figure.max_difference for figure in self.figures]
        return math.nan if not differences or any(map(math.isnan, differences)) else max(differences)

    @property
    def mean_difference(self) -> float:
        """Mean absolute difference over all answers."""
        rows = sum(figure.rows for figure in self.figures)
        return sum(figure.mean_difference * figure.rows for figure in self.figures) / rows if rows else math.nan

    @property
    def flip_rate(self) -> float:
        """Highest share of label decisions that turn over, of all ways in which every image runs."""
        whole = [figure for figure in self.figures if not figure.is_partial]
        return max((figure.flips / (figure.rows * self.labels) for figure in whole), default=math.nan)

    @property
    def flips(self) -> int:
        """Highest number of labels that turn over, of all ways."""
        return max((figure.flips for figure in self.figures), default=0)

    @property
    def map_drop(self) -> float | None:
        """By how much mean average precision falls; None where no labels are known."""
        if self.reference_map is None or self.candidate_map is None:
            return None
        return self.reference_map - self.candidate_map

    @property
    def is_blind(self) -> bool:
        """Whether two images' own scores differ so little that answers exchanged between them would pass."""
        return not self.spread >= MIN_SPREAD_IN_LIMITS * min(self.limits.max_difference, 1e-2)

    @property
    def failures(self) -> tuple[str, ...]:
        """Every limit that was not kept, in words; empty where the candidate passed."""
        limits = self.limits
        found = list(self.faults)
        for figure in self.figures:
            # `not <=` is true of NaN as well
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
            # where no flip is allowed, none is allowed anywhere
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
        """Pass only where every limit is kept.

        Args:
            advice: What to do, appended to the error.

        Raises:
            ParityError: A limit is not kept; the text has the first failures.
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
        """Return the report as JSON values, with what follows from the figures."""
        return {
            **dataclasses.asdict(self),
            "max_difference": self.max_difference,
            "mean_difference": self.mean_difference,
            "flip_rate": self.flip_rate,
            "map_drop": self.map_drop,
            "failures": list(self.failures),
        }

    def to_table(self) -> str:
        """Return the figures as a table for a terminal."""
        head = f"{'':22}{'answers':>8}{'highest':>10}{'mean':>10}{'flips':>7}{'ties':>6}{'own rows':>10}"
        rows = [
            f"{figure.way:22}{figure.rows:8}{figure.max_difference:10.1e}{figure.mean_difference:10.1e}"
            f"{figure.flips:7}{figure.near_ties:6}{figure.row_difference:10.1e}"
            for figure in self.figures
        ]
        return "\n".join([head, *rows])
