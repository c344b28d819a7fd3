"""The search: starts from the defaults and varies one knob after another; measurements decide each step.

It does not know what is measured, or how: it gets a function that measures, and a clock.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal

import msgspec

from mlcls.errors import ServerError, TuningError
from mlcls.repository.settings import ServingSettings
from mlcls.tuning.closed_loop import LoopFigures
from mlcls.tuning.comparison import MIN_PAIRS, Candidate, Goal, Pair, Turn, Verdict, compare
from mlcls.tuning.search_space import Change

# Pairs of turns per comparison, if there is time.
PAIRS: Final = 3

# Length of the warm-up before a window, as a share of the window.
WARMUP_SHARE: Final = 0.2

# Serves a model with settings and loads it with each concurrency. Raises ServerError if the server does not start or
# does not answer.
Measure = Callable[[ServingSettings, Sequence[int]], Turn]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The outcome of a search.

    Attributes:
        status: `changed`: other settings are better than the first. `kept`: none are. `missed`: no candidate meets the
            target.
        settings: The settings to serve with; if the target is missed, the nearest.
        figures: Their figures at the best concurrency.
        reason: Why these settings.
    """

    status: Literal["changed", "kept", "missed"]
    settings: ServingSettings
    figures: LoopFigures
    reason: str


@dataclasses.dataclass
class Search:
    """One search; its measurements can be read at any time, also after an interrupt.

    Attributes:
        knobs: The changes to try by the name of the knob, in this order.
        concurrencies: Concurrencies to measure the first candidate with, ascending, if the goal names none.
        budget_s: How long the search may take; it ends after the last comparison that fits.
        clock: A clock, in seconds.
    """

    measure: Measure
    goal: Goal
    knobs: Mapping[str, Sequence[Change]]
    concurrencies: Sequence[int]
    budget_s: float
    clock: Callable[[], float] = time.monotonic
    candidates: dict[ServingSettings, Candidate] = dataclasses.field(default_factory=dict)
    verdicts: list[Verdict] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        self.concurrencies = list(self.goal.concurrencies or self.concurrencies)
        self._deadline = self.clock() + self.budget_s
        self._overheads_s: list[float] = []
        self._window_s = 0.0

    def run(self, start: ServingSettings, others: Sequence[ServingSettings] = ()) -> Outcome:
        """Run the search.

        Args:
            start: The first incumbent.
            others: Settings to compare with it before the knobs are varied, such as those in use.

        Raises:
            ServerError: The first incumbent cannot be measured.
            TuningError: There was too little time for a comparison.
        """
        self._take_turn(start, self.concurrencies)
        incumbent = self._sweep("settings in use", start, others)
        before = None
        while incumbent != before:
            before = incumbent
            for name, changes in self.knobs.items():
                challengers = [msgspec.structs.replace(incumbent, **change) for change in changes]
                incumbent = self._sweep(name, incumbent, challengers)
        if not any(verdict.ratios for verdict in self.verdicts):
            raise TuningError(
                "Expected time for at least two turns of two candidates, got less; allow more with --minutes."
            )
        reason = "no challenger was better than the first settings by more than the noise"
        if incumbent != start:
            incumbent, reason = self._confirm(start, incumbent)
        return self._conclude(start, incumbent, reason)

    def _sweep(
        self, subject: str, incumbent: ServingSettings, challengers: Sequence[ServingSettings]
    ) -> ServingSettings:
        """Compare challengers with the incumbent in turns; return the best winner, or else the incumbent.

        A candidate that was compared before is skipped: since then, the incumbent has only become better.
        """
        points = self._points_around(incumbent)
        fresh = [settings for settings in challengers if settings not in self.candidates]
        reserve = 2 * MIN_PAIRS  # turns of the final comparison
        while fresh and not self._fits(MIN_PAIRS * (1 + len(fresh)) + reserve, points):
            fresh.pop()
        verdicts = self._take_turns(subject, incumbent, fresh, points, reserve)
        self.verdicts += verdicts
        winners = [verdict for verdict in verdicts if verdict.is_taken]
        return max(winners, key=self._rank).challenger if winners else incumbent

    def _rank(self, verdict: Verdict) -> tuple[float, float]:
        """Return a sort key for winners; meeting the target comes first if it was missed before."""
        best = None if verdict.figure == "throughput" else self.candidates[verdict.challenger].best(self.goal)
        return (best.images_per_s if best else 0.0, verdict.median_ratio)

    def _confirm(self, start: ServingSettings, chosen: ServingSettings) -> tuple[ServingSettings, str]:
        """Compare the settings that won the last comparison with the first ones."""
        best = self.candidates[start].best(self.goal)
        points = sorted({*self._points_around(chosen), *([best.concurrency] if best else [])})
        verdict = self._take_turns("first settings", start, [chosen], points, reserve=0)[0]
        self.verdicts.append(verdict)
        text = (
            f"{verdict.figure} {verdict.median_ratio:.2f} times that of the first settings, spread {verdict.spread:.2f}"
        )
        if verdict.is_taken:
            return chosen, text
        return start, f"{chosen} did not hold up in the last comparison with the first settings: {verdict.reason}"

    def _take_turns(
        self,
        subject: str,
        incumbent: ServingSettings,
        challengers: Sequence[ServingSettings],
        points: Sequence[int],
        reserve: int,
    ) -> list[Verdict]:
        pairs: dict[ServingSettings, list[Pair]] = {settings: [] for settings in challengers}
        alive = list(challengers)

        def judge(settings: ServingSettings) -> Verdict:
            own = self.candidates[incumbent]
            return compare(subject, own, self.candidates[settings], pairs[settings], self.goal)

        for number in range(PAIRS):
            needed = 1 + len(alive) + reserve
            if not alive or (number >= MIN_PAIRS and not self._fits(needed, points)):
                break
            own = self._take_turn(incumbent, points)
            for settings in alive:
                try:
                    pairs[settings].append((own, self._take_turn(settings, points)))
                except ServerError as error:
                    self.candidates[settings].fault = str(error)
            alive = [each for each in alive if self.candidates[each].fault is None and judge(each).can_win]
        return [judge(settings) for settings in challengers]

    def _take_turn(self, settings: ServingSettings, points: Sequence[int]) -> Turn:
        candidate = self.candidates.setdefault(settings, Candidate(settings))
        began = self.clock()
        turn = self.measure(settings, points)
        candidate.turns.append(turn)
        loaded_s = sum(figures.window_s for figures in turn.values()) * (1 + WARMUP_SHARE)
        self._window_s = max(figures.window_s for figures in turn.values())
        self._overheads_s.append(self.clock() - began - loaded_s)
        return turn

    def _fits(self, turns: int, points: Sequence[int]) -> bool:
        """Return whether there is time for a number of turns, judging by the past ones."""
        turn_s = statistics.mean(self._overheads_s) + len(points) * self._window_s * (1 + WARMUP_SHARE)
        return self.clock() + turns * turn_s <= self._deadline

    def _points_around(self, settings: ServingSettings) -> list[int]:
        """Return the best concurrency so far and its neighbors; the lowest ones if none meets the target."""
        if self.goal.concurrencies:
            return list(self.goal.concurrencies)
        best = self.candidates[settings].best(self.goal)
        if best is None:
            return list(self.concurrencies[:2])
        index = self.concurrencies.index(best.concurrency)
        return list(self.concurrencies[max(index - 1, 0) : index + 2])

    def _conclude(self, start: ServingSettings, chosen: ServingSettings, reason: str) -> Outcome:
        measured = {settings: each for settings, each in self.candidates.items() if each.fault is None}
        fit = {settings: best for settings, each in measured.items() if (best := each.best(self.goal))}
        if chosen in fit:
            return Outcome("kept" if chosen == start else "changed", chosen, fit[chosen], reason)
        if fit:
            chosen = max(fit, key=lambda settings: fit[settings].images_per_s)
            return Outcome("changed", chosen, fit[chosen], "no other settings meet the target with a higher throughput")
        near = {settings: nearest for settings, each in measured.items() if (nearest := each.nearest())}
        if not near:
            raise TuningError("Expected answers within the measured time, got none; allow more with --minutes.")
        chosen = min(near, key=lambda settings: near[settings].percentile_ms(99))
        figures = near[chosen]
        p99 = f"p99 {figures.percentile_ms(99):.0f} ms at concurrency {figures.concurrency}"
        return Outcome("missed", chosen, figures, f"no candidate gives {self.goal}; the nearest has {p99}")
