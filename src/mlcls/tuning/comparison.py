"""Candidates, and whether a challenger beats the incumbent by more than the noise of the machine.

The two are measured in alternating turns, so that other load on the machine affects both. Each pair of turns gives a
ratio. A challenger wins only if the median of the ratios is above 1 by more than their spread and by more than
`MIN_GAIN`.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Final

import numpy as np

from mlcls.repository.settings import ServingSettings
from mlcls.tuning.closed_loop import LoopFigures

# A smaller gain is not worth new settings.
MIN_GAIN: Final = 0.02

# Pairs of turns that a decision needs: one has no spread.
MIN_PAIRS: Final = 2

# A concurrency that reaches this share of the highest throughput is as good, if it is lower: its latency is lower.
_AS_FAST: Final = 0.98

_MISSES_TARGET: Final = "misses the target"

# Figures measured during one run of a server, by concurrency.
Turn = Mapping[int, LoopFigures]
# The turns of incumbent and challenger that were measured one after the other.
Pair = tuple[Turn, Turn]


@dataclasses.dataclass(frozen=True)
class Goal:
    """The goal of a search: the highest throughput at a concurrency whose latency meets the target.

    Attributes:
        p99_ms: Highest allowed 99th percentile of the latency; None if only the throughput counts.
        concurrencies: Concurrencies to measure; empty if they are found by measuring.
    """

    p99_ms: float | None
    concurrencies: tuple[int, ...] = ()

    def is_met(self, figures: LoopFigures) -> bool:
        """Return whether the latency meets the target; without answers, it does not."""
        return len(figures.latencies_s) > 0 and (self.p99_ms is None or figures.percentile_ms(99) <= self.p99_ms)

    def __str__(self) -> str:
        return "the highest throughput" + ("" if self.p99_ms is None else f" with p99 of at most {self.p99_ms:g} ms")


@dataclasses.dataclass
class Candidate:
    """Settings, and all their measurements, one turn for each run of a server; `fault` says why one failed."""

    settings: ServingSettings
    turns: list[Turn] = dataclasses.field(default_factory=list)
    fault: str | None = None

    def pooled(self) -> dict[int, LoopFigures]:
        """Return the figures of all turns together, by concurrency: a percentile of few calls is mostly chance."""
        pooled = {}
        for concurrency in sorted(set().union(*self.turns)):
            parts = [turn[concurrency] for turn in self.turns if concurrency in turn]
            latencies_s = np.concatenate([part.latencies_s for part in parts])
            pooled[concurrency] = LoopFigures(concurrency, sum(part.window_s for part in parts), latencies_s)
        return pooled

    def best(self, goal: Goal, among: Collection[int] | None = None) -> LoopFigures | None:
        """Return the figures with the highest throughput that meet the target, of all concurrencies or `among` some.

        None if no concurrency meets the target.
        """
        fit = [figures for figures in self._figures(among) if goal.is_met(figures)]
        highest = max((figures.images_per_s for figures in fit), default=0.0)
        return next((figures for figures in fit if figures.images_per_s >= _AS_FAST * highest), None)

    def nearest(self, among: Collection[int] | None = None) -> LoopFigures | None:
        """Return the concurrency with the lowest 99th percentile; None if nothing was answered."""
        answered = [figures for figures in self._figures(among) if len(figures.latencies_s)]
        return min(answered, key=lambda figures: figures.percentile_ms(99), default=None)

    def _figures(self, among: Collection[int] | None) -> list[LoopFigures]:
        return [figures for concurrency, figures in self.pooled().items() if among is None or concurrency in among]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The outcome of one comparison: whether the challenger is taken in the incumbent's place, and why.

    Attributes:
        subject: What was varied.
        figure: What the ratios compare: `throughput`, or `p99` if one of them misses the target.
        ratios: Challenger to incumbent, one for each pair of turns, above 1 if the challenger is better.
    """

    subject: str
    incumbent: ServingSettings
    challenger: ServingSettings
    figure: str
    ratios: Sequence[float]
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

    @property
    def can_win(self) -> bool:
        """Whether the challenger could still win with more turns."""
        if self.is_taken or not self.ratios:
            return True
        if self.reason == _MISSES_TARGET:
            return max(self.ratios) > 0.8
        return max(self.ratios) >= (0.9 if len(self.ratios) < MIN_PAIRS else 1.0)


def compare(subject: str, incumbent: Candidate, challenger: Candidate, pairs: Sequence[Pair], goal: Goal) -> Verdict:
    """Judge a challenger by the pairs of turns that were measured for this comparison."""
    settings = incumbent.settings, challenger.settings
    if not pairs:
        reason = challenger.fault or "there was no time to measure it"
        return Verdict(subject, *settings, "throughput", (), False, reason)
    among = set.intersection(*(set(turn) for pair in pairs for turn in pair))
    ours, theirs = incumbent.best(goal, among), challenger.best(goal, among)
    if ours is not None and theirs is not None:
        figure, ratios = "throughput", _ratios("throughput", ours, theirs, pairs)
    else:
        figure, ratios = "p99", _ratios("p99", incumbent.nearest(among), challenger.nearest(among), pairs)
    if ours is not None and theirs is None:
        is_taken, reason = False, _MISSES_TARGET
    elif ours is None and theirs is not None and len(pairs) >= MIN_PAIRS:
        is_taken, reason = True, "meets the target, which the incumbent misses"
    else:
        is_taken, reason = _judge(ratios)
    return Verdict(subject, *settings, figure, ratios, is_taken, reason)


def _ratios(figure: str, ours: LoopFigures | None, theirs: LoopFigures | None, pairs: Sequence[Pair]) -> list[float]:
    """Return challenger to incumbent for each pair of turns, each at its own concurrency."""
    if ours is None or theirs is None:
        return []
    figures = [(own[ours.concurrency], turn[theirs.concurrency]) for own, turn in pairs]
    if figure == "throughput":
        return [other.images_per_s / own.images_per_s for own, other in figures if len(own.latencies_s)]
    answered = [(own, other) for own, other in figures if len(own.latencies_s) and len(other.latencies_s)]
    return [own.percentile_ms(99) / other.percentile_ms(99) for own, other in answered]


def _judge(ratios: Sequence[float]) -> tuple[bool, str]:
    if len(ratios) < MIN_PAIRS:
        return False, "clearly worse in its first turn" if max(ratios, default=0.0) < 0.9 else "measured too few times"
    gain, noise = statistics.median(ratios) - 1, max(_spread(ratios), MIN_GAIN)
    if gain > noise:
        return True, "better by more than the noise"
    return False, "worse" if gain < -noise else "not better by more than the noise"


def _spread(ratios: Sequence[float]) -> float:
    return (max(ratios) - min(ratios)) / 2
