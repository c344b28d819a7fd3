"""The measurements of one candidate, and how good they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Final

import numpy as np

from mlcls.repository.settings import ServingSettings
from mlcls.tuning.closed_loop import LoopFigures

# Figures measured during one run of a server, by concurrency.
Turn = Mapping[int, LoopFigures]

# A concurrency that reaches this share of the highest throughput is as good, if it is lower: its latency is lower.
_AS_FAST: Final = 0.98


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
    """Settings, and all their measurements.

    Attributes:
        settings: The settings.
        turns: One for each run of a server, in order.
        fault: Why a server with them could not be measured; None if it could.
    """

    settings: ServingSettings
    turns: list[Turn] = dataclasses.field(default_factory=list)
    fault: str | None = None

    def pooled(self) -> dict[int, LoopFigures]:
        """Return the figures of all turns together, by concurrency: a percentile of few calls is mostly chance."""
        found: dict[int, list[LoopFigures]] = {}
        for turn in self.turns:
            for concurrency, figures in turn.items():
                found.setdefault(concurrency, []).append(figures)
        return {concurrency: _pool(parts) for concurrency, parts in sorted(found.items())}

    def best(self, goal: Goal, among: Collection[int] | None = None) -> LoopFigures | None:
        """Return the concurrency with the highest throughput that meets the target.

        Args:
            goal: The goal of the search.
            among: The concurrencies to choose from; by default all that were measured.

        Returns:
            Its figures; None if no concurrency meets the target.
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


def _pool(parts: list[LoopFigures]) -> LoopFigures:
    return LoopFigures(
        parts[0].concurrency,
        sum(part.window_s for part in parts),
        np.concatenate([part.latencies_s for part in parts]),
        parts[0].images_per_call,
    )
