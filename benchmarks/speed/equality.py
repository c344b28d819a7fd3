"""Whether contenders give the same answers; checked before their speed is compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from benchmarks.speed.peers.contender import Answer, PeerError

# Of a score, between any two contenders.
TOLERANCE: Final = 1e-3


def require_telling(answers: Sequence[Answer]) -> None:
    """Refuse photos that a comparison of answers would prove nothing with: ones that are all answered alike.

    Raises:
        PeerError: No photo, all answers the same, or all empty.
    """
    if len(answers) < 2 or all(_differ(answer, answers[0], ()) is None for answer in answers):
        raise PeerError(
            f"Expected photos with different answers, got {len(answers)} that are all alike: equal answers of another "
            f"program would prove nothing. Use other photos or another model."
        )


def require_equal(
    name: str, expected: Sequence[Answer], answers: Sequence[Answer], thresholds: Sequence[float]
) -> None:
    """Refuse a contender whose answers are not those of the served model.

    Scores may differ by `TOLERANCE`; so a label whose score is that close to its threshold may be missing.

    Args:
        name: The contender's.
        expected: The served model's answer to each photo.
        answers: The contender's answer to each photo, in the same order.
        thresholds: Threshold of each class id.

    Raises:
        PeerError: An answer differs; the text has the photo's place and the first difference.
    """
    if len(answers) != len(expected):
        raise PeerError(f"{name}: expected {len(expected)} answers, one for each photo, got {len(answers)}.")
    for index, (ours, theirs) in enumerate(zip(expected, answers, strict=True)):
        difference = _differ(ours, theirs, thresholds)
        if difference is not None:
            raise PeerError(
                f"{name}: expected the served model's answer to photo {index}, got another one ({difference}); its "
                f"speed is not compared."
            )


def _differ(ours: Answer, theirs: Answer, thresholds: Sequence[float]) -> str | None:
    """Return the first difference in words; None where there is none."""
    for index in sorted({*ours, *theirs}):
        at_threshold = thresholds[index] if index < len(thresholds) else float("nan")
        one, other = (answer.get(index, at_threshold) for answer in (ours, theirs))
        if not abs(one - other) <= TOLERANCE:  # NaN differs
            texts = [f"{answer[index]:.5f}" if index in answer else "no label" for answer in (ours, theirs)]
            return f"class id {index}: expected {texts[0]}, got {texts[1]}"
    return None
