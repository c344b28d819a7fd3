"""The speed goals, and the report of the quick benchmark: which goals are met, and a table of all models."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Final, Literal

from benchmarks.speed.bench import SERVED
from benchmarks.speed.compare import Comparison
from benchmarks.speed.in_process import BARE_PROCESS, ENGINES, PADDLEX_PREDICT
from benchmarks.speed.peers import PADDLEX_SERVER
from benchmarks.speed.results import format_table
from benchmarks.speed.turns import ratios_of, values_of
from mlcls.model.catalog import OFFICIAL_MODELS

# The model that is measured thoroughly.
THOROUGH_MODEL: Final = "PP-LCNet_x1_0_ML"


@dataclasses.dataclass(frozen=True)
class Goal:
    """One goal and the figures for it.

    Attributes:
        what: What is measured.
        kind: `at least` and `at most` include the limit itself, `above` does not.
        limit: The figure to reach.
        unit: Unit of the figures.
        values: The measured figures, of which the median counts; empty if there are none.
        note: The model and peer with the lowest ratio.
        asked: Whether it was supposed to be measured.
    """

    what: str
    kind: Literal["at least", "at most", "above"]
    limit: float
    unit: str
    values: Sequence[float]
    note: str = ""
    asked: bool = True

    @property
    def verdict(self) -> str:
        """Whether the goal is met."""
        if not self.values:
            return "not measured" if self.asked else "not asked for"
        median = statistics.median(self.values)
        is_met = {"at least": median >= self.limit, "at most": median <= self.limit, "above": median > self.limit}
        return "met" if is_met[self.kind] else "missed"


@dataclasses.dataclass
class QuickReport:
    """All figures of one run.

    Attributes:
        names: The requested models.
        comparisons: Results for each model.
        ready_one_s: Times from start to ready with one model.
        ready_six_s: The same with six models.
        memory_mb: Memory of the server of one model, after load (PSS).
        errors: What could not be measured, and why.
    """

    names: tuple[str, ...]
    comparisons: dict[str, Comparison] = dataclasses.field(default_factory=dict)
    ready_one_s: list[float] = dataclasses.field(default_factory=list)
    ready_six_s: list[float] = dataclasses.field(default_factory=list)
    memory_mb: list[float] = dataclasses.field(default_factory=list)
    errors: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def has_six(self) -> bool:
        """Whether all official models were requested."""
        return set(self.names) == set(OFFICIAL_MODELS)

    def goals(self) -> list[Goal]:
        """Return all goals with their figures."""
        name, asked, times = THOROUGH_MODEL, THOROUGH_MODEL in self.names, " times"
        one = self.comparisons.get(name, Comparison(0))
        paddlex, bare = (ratios_of(one.turns, SERVED, peer) for peer in (PADDLEX_SERVER, BARE_PROCESS))
        latency = ratios_of(one.latency_turns, SERVED, PADDLEX_PREDICT)
        worst, worst_of_engines = self._worst([PADDLEX_SERVER]), self._worst(ENGINES)
        return [
            Goal("throughput against `paddlex --serve`", "at least", 1.8, times, paddlex, name, asked),
            Goal("each model against `paddlex --serve`; the worst", "above", 1, times, *worst),
            Goal("each model against the fastest bare engine; the worst", "at least", 0.95, times, *worst_of_engines),
            Goal("throughput against a bare process with decoding", "at least", 0.92, times, bare, name, asked),
            Goal("latency, one in flight, against PaddleX predict()", "at most", 0.85, times, latency, name, asked),
            Goal("preprocess, one core, 640x480 JPEG", "at most", 7, " ms", one.preprocess_ms, "", asked),
            Goal("ready after start, one model", "at most", 6, " s", self.ready_one_s, name, asked),
            Goal("ready after start, six models", "at most", 25, " s", self.ready_six_s, "", self.has_six),
            Goal("memory of all processes (PSS), one model", "at most", 800, " MB", self.memory_mb, name, asked),
        ]

    def is_complete(self) -> bool:
        """Return whether everything requested could be measured."""
        peers_failed = any(found.errors for found in self.comparisons.values())
        return not (self.errors or peers_failed or any(goal.verdict == "not measured" for goal in self.goals()))

    def format(self) -> str:
        """Return the two tables and the errors in Markdown."""
        rows = []
        for goal in self.goals():
            measured = f"{statistics.median(goal.values):.3g}{goal.unit}" if goal.values else "-"
            note = f" ({goal.note})" if goal.note else ""
            limit = f"{goal.kind} {goal.limit:g}{goal.unit}"
            rows.append([goal.what, limit, measured + note, format_spread(goal.values), goal.verdict])
        parts = [format_table(["what", "goal", "measured", "spread", "verdict"], rows), self._format_models()]
        errors = [*self.errors.items()]
        for name, found in self.comparisons.items():
            errors += [(f"{name}, {peer}", text) for peer, text in found.errors.items()]
        if errors:
            parts.append("Not measured:\n\n" + "\n".join(f"- {where}: {text}" for where, text in errors))
        return "\n\n".join(parts)

    def _format_models(self) -> str:
        """Return a table of each contender's images per second, and the served model's ratio to it."""
        rows = []
        for name, found in self.comparisons.items():
            for contender in dict.fromkeys(contender for contender, _ in found.turns):
                rates, ratios = values_of(found.turns, contender), ratios_of(found.turns, SERVED, contender)
                row = [name, str(found.concurrency), contender]
                row += [f"{statistics.median(rates):.3g}" if rates else "not measured", format_spread(rates)]
                row += [f"{statistics.median(ratios):.2f} times" if ratios else "-", format_spread(ratios)]
                rows.append(row)
        return format_table(["model", "in flight", "contender", "images/s", "spread", "served is", "spread"], rows)

    def _worst(self, peers: Sequence[str]) -> tuple[list[float], str]:
        """Return the lowest ratio of any model to the fastest of some peers; none unless all models have them all."""
        ratios: dict[str, list[float]] = {}
        for name in self.names:
            turns = self.comparisons[name].turns if name in self.comparisons else []
            rates = {peer: statistics.median(values_of(turns, peer) or [0.0]) for peer in peers}
            fastest = max(rates, key=rates.__getitem__)
            found = ratios_of(turns, SERVED, fastest)
            if not found or not all(rates.values()):
                return [], f"{name} could not be compared"
            ratios[f"{name}, {fastest}"] = found
        worst = min(ratios, key=lambda key: statistics.median(ratios[key]))
        return ratios[worst], worst


def format_spread(values: Sequence[float]) -> str:
    """Return the lowest and the highest value; a dash if there is only one."""
    return f"{min(values):.3g} to {max(values):.3g}" if len(values) > 1 else "-"
