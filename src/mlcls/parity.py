"""How far the scores of two runners differ, on real images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from mlcls.errors import ParityError
from mlcls.runners import Runner

#: The highest difference of scores that a float32 conversion may show.
MAX_DIFFERENCE: Final = 1e-4

#: The least by which scores must differ between images for a comparison to say anything.
MIN_SPREAD: Final = 0.01


@dataclasses.dataclass(frozen=True)
class ParityReport:
    """Two runners' scores of the same images, compared.

    Attributes:
        reference: Name of the reference runner.
        candidate: Name of the runner that is held against it.
        images: Number of images.
        max_difference: Highest absolute difference of two scores.
        mean_difference: Mean absolute difference.
        flips: Number of labels, over all images, that one predicts and the other does not.
        spread: Highest difference between the reference's scores of two of the images, over the labels.
    """

    reference: str
    candidate: str
    images: int
    max_difference: float
    mean_difference: float
    flips: int
    spread: float

    @property
    def is_blind(self) -> bool:
        """Whether the images' own scores differ so little that answers exchanged between images would pass."""
        return self.spread < MIN_SPREAD

    def __str__(self) -> str:
        return (
            f"{self.candidate} against {self.reference} on {self.images} images: highest difference "
            f"{self.max_difference:.1e}, mean {self.mean_difference:.1e}, {self.flips} flipped labels"
        )

    def require(self, max_difference: float = MAX_DIFFERENCE) -> None:
        """Passes only where scores agree and no label flips.

        Raises:
            ParityError: The highest difference is above the limit or not a number, or a label flips.
        """
        if not self.max_difference <= max_difference or self.flips:
            raise ParityError(
                f"Expected the converted model to give Paddle's scores within {max_difference:.0e} and the same "
                f"labels, got: {self}. Nothing was written; please report the model."
            )


def compare_runners(
    reference: Runner,
    candidate: Runner,
    pixels: npt.NDArray[np.uint8],
    thresholds: Sequence[float],
    batch_sizes: Sequence[int] = (1, 4),
) -> ParityReport:
    """Runs both on the same images, the candidate at several batch sizes, and compares.

    Args:
        reference: Runs one image at a time.
        candidate: Runs the images once for each of the batch sizes.
        pixels: (N, H, W, 3) uint8 RGB.
        thresholds: Threshold of each label.
        batch_sizes: Batch sizes of the candidate; a last smaller batch takes the rest.
    """
    from tqdm import tqdm

    total = len(pixels) * (1 + len(batch_sizes))
    with tqdm(total=total, desc="comparing", unit="image", leave=False, disable=None) as progress:  # on a terminal only
        return _compare(reference, candidate, pixels, thresholds, batch_sizes, progress.update)


def _compare(
    reference: Runner,
    candidate: Runner,
    pixels: npt.NDArray[np.uint8],
    thresholds: Sequence[float],
    batch_sizes: Sequence[int],
    advance: Callable[[int], object],
) -> ParityReport:
    expected = _run_in_batches(reference, pixels, 1, advance)
    limits = np.asarray(thresholds, np.float32)
    differences = []
    flips = 0
    for batch_size in batch_sizes:
        got = _run_in_batches(candidate, pixels, batch_size, advance)
        if got.shape != expected.shape:
            raise ParityError(f"Expected scores {expected.shape} of {candidate.name}, got {got.shape}.")
        differences.append(np.abs(got.astype(np.float64) - expected))
        flips = max(flips, int(((got > limits) != (expected > limits)).sum()))
    return ParityReport(
        reference.name,
        candidate.name,
        len(pixels),
        float(np.max(differences)),
        float(np.mean(differences)),
        flips,
        float(np.ptp(expected, axis=0).max()),
    )


def _run_in_batches(
    runner: Runner, pixels: npt.NDArray[np.uint8], batch_size: int, advance: Callable[[int], object]
) -> npt.NDArray[np.float32]:
    scores = []
    for start in range(0, len(pixels), batch_size):
        batch = pixels[start : start + batch_size]
        scores.append(runner.scores(batch))
        advance(len(batch))
    return np.concatenate(scores)
