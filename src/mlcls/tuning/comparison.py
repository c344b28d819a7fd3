"""Whether a challenger beats the incumbent by more than the noise of the machine.

The two are measured in alternating turns, so that other load on the machine affects both. Each pair of turns gives a
ratio. A challenger wins only if the median of the ratios is above 1 by more than their spread and by more than
`MIN_GAIN`.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Collection, Sequence
from typing import Final

from mlcls.repository.settings import ServingSettings
from mlcls.tuning.candidate import Candidate, Goal, Turn

# A smaller gain is not worth new settings.
MIN_GAIN: Final = 0.02

# Pairs of turns that a decision needs: one has no spread.
MIN_PAIRS: Final = 2

_MISSES_TARGET: Final = "misses the target"

Pair = tuple[Turn, Turn]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The outcome of one comparison.

    Attributes:
        subject: What was varied.
        incumbent: The settings in place.
        challenger: The settings that would replace them.
        figure: What the ratios compare: `throughput`, or `p99` if one of them misses the target.
        ratios: Challenger to incumbent, one for each pair of turns, above 1 if the challenger is better.
        is_taken: Whether the challenger wins.
        reason: Why.
    """

    subject: str
    incumbent: ServingSettings
    challenger: ServingSettings
    figure: str
    ratios: tuple[float, ...]
    is_taken: bool
    reason: str

    @property
    def median_ratio(self) -> float:
        """Median of the ratios; NaN if there are none."""
        return statistics.median(self.ratios) if self.ratios else float("nan")

    @property
    def spread(self) -> float:
        """Half the distance between the extreme ratios; NaN if there are none."""
        return _spread(self.ratios) if self.ratios else float("nan")


def compare(
    subject: str,
    incumbent: Candidate,
    challenger: Candidate,
    pairs: Sequence[Pair],
    goal: Goal,
) -> Verdict:
    """Judge a challenger.

    Args:
        subject: What was varied.
        incumbent: The candidate in place, with all its turns.
        challenger: The other one, with all its turns.
        pairs: The turns of both, incumbent first, that were measured one after the other.
        goal: The goal of the search.
    """
    if not pairs:
        reason = challenger.fault or "there was no time to measure it"
        return Verdict(subject, incumbent.settings, challenger.settings, "throughput", (), False, reason)
    among = _common(pairs)
    ours, theirs = incumbent.best(goal, among), challenger.best(goal, among)
    if ours is not None and theirs is not None:
        figure = "throughput"
        figures = [(own[ours.concurrency], turn[theirs.concurrency]) for own, turn in pairs]
        ratios = tuple(other.images_per_s / own.images_per_s for own, other in figures if len(own.latencies_s))
        is_taken, reason = _judge(ratios)
    else:
        figure = "p99"
        ratios = _latency_ratios(incumbent, challenger, pairs, among)
        if ours is not None:
            is_taken, reason = False, _MISSES_TARGET
        elif theirs is not None and len(pairs) >= MIN_PAIRS:
            is_taken, reason = True, "meets the target, which the incumbent misses"
        else:
            is_taken, reason = _judge(ratios)
    return Verdict(subject, incumbent.settings, challenger.settings, figure, ratios, is_taken, reason)


def can_win(verdict: Verdict) -> bool:
    """Return whether a challenger could still win with more turns."""
    if verdict.is_taken or not verdict.ratios:
        return True
    if verdict.reason == _MISSES_TARGET:
        return max(verdict.ratios) > 0.8
    return max(verdict.ratios) >= (0.9 if len(verdict.ratios) < MIN_PAIRS else 1.0)


def _judge(ratios: Sequence[float]) -> tuple[bool, str]:
    if len(ratios) < MIN_PAIRS:
        return False, "clearly worse in its first turn" if max(ratios, default=0.0) < 0.9 else "measured too few times"
    gain, noise = statistics.median(ratios) - 1, max(_spread(ratios), MIN_GAIN)
    if gain > noise:
        return True, "better by more than the noise"
    return False, "worse" if gain < -noise else "not better by more than the noise"


def _spread(ratios: Sequence[float]) -> float:
    return (max(ratios) - min(ratios)) / 2


def _latency_ratios(
    incumbent: Candidate, challenger: Candidate, pairs: Sequence[Pair], among: Collection[int]
) -> tuple[float, ...]:
    ours, theirs = incumbent.nearest(among), challenger.nearest(among)
    if ours is None or theirs is None:
        return ()
    figures = [(own[ours.concurrency], turn[theirs.concurrency]) for own, turn in pairs]
    return tuple(
        own.percentile_ms(99) / other.percentile_ms(99)
        for own, other in figures
        if len(own.latencies_s) and len(other.latencies_s)
    )


def _common(pairs: Sequence[Pair]) -> set[int]:
    """Return the concurrencies that all turns have."""
    return set.intersection(*(set(turn) for pair in pairs for turn in pair))
