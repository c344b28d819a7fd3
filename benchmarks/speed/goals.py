"""The speed goals, and whether measurements meet them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, Final, Literal

from benchmarks.speed.turns import Spread

Verdict = Literal["met", "missed", "not measured", "not asked for"]


@dataclasses.dataclass(frozen=True)
class Goal:
    """One line of the table.

    Attributes:
        key: Its name in the JSON file.
        what: What is measured.
        limit: The figure to reach.
        kind: `at least` and `at most` include the limit itself, `above` does not.
        unit: Unit of the figures.
    """

    key: str
    what: str
    limit: float
    kind: Literal["at least", "at most", "above"]
    unit: str = " times"

    @property
    def text(self) -> str:
        """The goal as text."""
        return f"{self.kind} {self.limit:g}{self.unit}"

    def is_met(self, value: float) -> bool:
        """Return whether a figure meets the goal; NaN does not."""
        if self.kind == "above":
            return value > self.limit
        return value >= self.limit if self.kind == "at least" else value <= self.limit


THROUGHPUT: Final = Goal(
    "throughput", "throughput at concurrency 8 against `paddlex --serve`, PP-LCNet_x1_0_ML", 1.8, "at least"
)
EACH_AGAINST_PADDLEX: Final = Goal(
    "each_against_paddlex", "each model against `paddlex --serve`; the worst", 1, "above"
)
EACH_AGAINST_ENGINE: Final = Goal(
    "each_against_engine", "each model against the fastest bare engine for it; the worst", 0.95, "at least"
)
BARE_PROCESS: Final = Goal(
    "bare_process", "throughput against decode + resize + OpenVINO in one bare process, same cores", 0.92, "at least"
)
LATENCY: Final = Goal(
    "latency", "median latency at concurrency 1 against PaddleX's in-process `predict()`", 0.85, "at most"
)
PREPROCESS: Final = Goal(
    "preprocess", "preprocess, one core, 640x480 JPEG, pixels identical to PaddleX's", 7, "at most", " ms"
)
READY_ONE: Final = Goal("ready_one", "ready after start, one model", 6, "at most", " s")
READY_SIX: Final = Goal("ready_six", "ready after start, six models", 25, "at most", " s")
MEMORY: Final = Goal("memory", "memory of a served PP-LCNet_x1_0_ML, all processes (PSS)", 800, "at most", " MB")

GOALS: Final = (
    THROUGHPUT,
    EACH_AGAINST_PADDLEX,
    EACH_AGAINST_ENGINE,
    BARE_PROCESS,
    LATENCY,
    PREPROCESS,
    READY_ONE,
    READY_SIX,
    MEMORY,
)


@dataclasses.dataclass(frozen=True)
class GoalResult:
    """The result for one goal.

    Attributes:
        goal: The goal.
        measured: All figures, of which the median counts; None if there are none.
        note: The model, or why nothing was measured.
        asked: Whether it was supposed to be measured.
    """

    goal: Goal
    measured: Spread | None
    note: str = ""
    asked: bool = True

    @property
    def verdict(self) -> Verdict:
        """Whether the goal is met."""
        if self.measured is None:
            return "not measured" if self.asked else "not asked for"
        return "met" if self.goal.is_met(self.measured.median) else "missed"

    def to_dict(self) -> dict[str, Any]:
        """Return the result as in the JSON file."""
        return {
            "goal": dataclasses.asdict(self.goal),
            "values": None if self.measured is None else list(self.measured.values),
            "median": None if self.measured is None else self.measured.median,
            "verdict": self.verdict,
            "note": self.note,
        }


def format_goals(results: Iterable[GoalResult]) -> str:
    """Return the results as a Markdown table."""
    lines = ["| what | goal | measured | spread | verdict |", "|---|---|---|---|---|"]
    for result in results:
        measured, spread = "-", "-"
        if result.measured is not None:
            measured = f"{result.measured.median:.3g}{result.goal.unit}"
            spread = format_spread(result.measured)
        note = f" ({result.note})" if result.note else ""
        lines.append(f"| {result.goal.what} | {result.goal.text} | {measured}{note} | {spread} | {result.verdict} |")
    return "\n".join(lines)


def format_spread(spread: Spread) -> str:
    """Return the lowest and the highest value; a dash if there is only one."""
    return f"{spread.lowest:.3g} to {spread.highest:.3g}" if len(spread.values) > 1 else "-"
