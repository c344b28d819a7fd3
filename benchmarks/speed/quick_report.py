"""The report of the quick benchmark: the goals' results, a table of models, and a JSON file of all raw figures."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from benchmarks.speed import goals
from benchmarks.speed.contenders import Comparison
from benchmarks.speed.goals import Goal, GoalResult, format_goals, format_spread
from benchmarks.speed.peers.bare_process import BareProcess
from benchmarks.speed.peers.paddlex_predict import PaddlexPredict
from benchmarks.speed.peers.paddlex_server import PADDLEX_SERVER
from benchmarks.speed.peers.served import ServedEnsemble
from benchmarks.speed.turns import Spread
from mlcls.errors import MlclsError
from mlcls.model.catalog import OFFICIAL_MODELS

# The model that is measured thoroughly.
THOROUGH_MODEL: Final = "PP-LCNet_x1_0_ML"

_SERVED: Final = ServedEnsemble.name


@dataclasses.dataclass
class QuickReport:
    """All figures of one run.

    Attributes:
        machine: Facts of the machine.
        names: The requested models.
        random_weights: Whether their weights are random.
        comparisons: Results for each model.
        ready_one_s: Times from start to ready with one model.
        ready_six_s: The same with six models.
        memory_mb: Memory of the server of one model, after load.
        preprocess_ms: Median time of each photo.
        pixel_digests: SHA-256 of our pixels of each photo.
        errors: What could not be measured, and why.
        steps_s: How long each kind of step took.
    """

    machine: Mapping[str, str]
    names: tuple[str, ...]
    random_weights: bool = False
    comparisons: dict[str, Comparison] = dataclasses.field(default_factory=dict)
    ready_one_s: list[float] = dataclasses.field(default_factory=list)
    ready_six_s: list[float] = dataclasses.field(default_factory=list)
    memory_mb: list[float] = dataclasses.field(default_factory=list)
    preprocess_ms: list[float] = dataclasses.field(default_factory=list)
    pixel_digests: list[str] = dataclasses.field(default_factory=list)
    errors: dict[str, str] = dataclasses.field(default_factory=dict)
    steps_s: dict[str, float] = dataclasses.field(default_factory=dict)

    def goal_results(self) -> list[GoalResult]:
        """Return the result of each goal, in the table's order."""
        return [
            self._of_thorough(goals.THROUGHPUT, lambda found: found.turns.ratio(_SERVED, PADDLEX_SERVER)),
            self._worst(goals.EACH_AGAINST_PADDLEX, lambda found: PADDLEX_SERVER),
            self._worst(goals.EACH_AGAINST_ENGINE, Comparison.fastest_engine),
            self._of_thorough(goals.BARE_PROCESS, lambda found: found.turns.ratio(_SERVED, BareProcess.name)),
            self._of_thorough(goals.LATENCY, _latency_ratio),
            self._of_thorough(goals.PREPROCESS, self._preprocess),
            self._plain(goals.READY_ONE, self.ready_one_s, THOROUGH_MODEL in self.names),
            self._plain(goals.READY_SIX, self.ready_six_s, set(self.names) == set(OFFICIAL_MODELS)),
            self._plain(goals.MEMORY, self.memory_mb, THOROUGH_MODEL in self.names),
        ]

    def is_complete(self) -> bool:
        """Return whether everything requested could be measured."""
        peers_failed = any(found.errors for found in self.comparisons.values())
        unmeasured = any(result.verdict == "not measured" for result in self.goal_results())
        return not (self.errors or peers_failed or unmeasured)

    def to_json(self) -> str:
        """Return all figures and results as JSON; NaN becomes null."""
        document = {
            "goals": [result.to_dict() for result in self.goal_results()],
            **dataclasses.asdict(self),
        }
        return json.dumps(_without_nan(document), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def to_markdown(self) -> str:
        """Return the two tables, the errors, and the facts of the machine."""
        parts = [format_goals(self.goal_results()), self._format_models()]
        errors = [*self.errors.items()]
        for name, found in self.comparisons.items():
            errors += [(f"{name}, {peer}", text) for peer, text in found.errors.items()]
        if errors:
            parts.append("Not measured:\n\n" + "\n".join(f"- {where}: {text}" for where, text in errors))
        settings = [
            f"- {name}: " + "; ".join(f"{peer}: {setting}" for peer, setting in found.settings.items())
            for name, found in self.comparisons.items()
        ]
        parts.append("Best settings of those tried:\n\n" + "\n".join(settings))
        weights = "random weights" if self.random_weights else "imported weights"
        parts.append(f"{weights}; " + ", ".join(f"{name} {value}" for name, value in self.machine.items()))
        return "\n\n".join(parts)

    def _format_models(self) -> str:
        """Return a table of each contender's images per second, and the served model's ratio to it."""
        lines = [
            "| model | in flight | contender | images/s | spread | served is | spread |",
            "|---|---|---|---|---|---|---|",
        ]
        for name, found in self.comparisons.items():
            for contender in dict.fromkeys(window.name for window in found.turns.windows):
                lines.append(f"| {name} | {found.load.concurrency} | {contender} | {_format_row(found, contender)} |")
        return "\n".join(lines)

    def _of_thorough(self, goal: Goal, figure: Callable[[Comparison], Spread]) -> GoalResult:
        found = self.comparisons.get(THOROUGH_MODEL)
        try:
            if found is not None:
                return GoalResult(goal, figure(found))
        except MlclsError as error:
            return GoalResult(goal, None, str(error))
        return GoalResult(goal, None, asked=THOROUGH_MODEL in self.names)

    def _worst(self, goal: Goal, base: Callable[[Comparison], str]) -> GoalResult:
        """Return the result of the model with the lowest ratio; not measured unless all requested models are."""
        ratios: dict[str, tuple[Spread, str]] = {}
        for name in self.names:
            try:
                found = self.comparisons[name]
                ratios[name] = found.turns.ratio(_SERVED, base(found)), base(found)
            except KeyError:
                return GoalResult(goal, None, f"{name} could not be compared")
            except MlclsError as error:
                return GoalResult(goal, None, f"{name}: {error}")
        worst = min(ratios, key=lambda name: ratios[name][0].median)
        return GoalResult(goal, ratios[worst][0], f"{worst}, {ratios[worst][1]}")

    def _plain(self, goal: Goal, values: list[float], asked: bool) -> GoalResult:
        return GoalResult(goal, Spread(tuple(values)) if values else None, asked=asked)

    def _preprocess(self, found: Comparison) -> Spread:
        if not found.pixel_digests or not self.pixel_digests:
            raise MlclsError("the pixels could not be compared")
        differing = sum(one != other for one, other in zip(self.pixel_digests, found.pixel_digests, strict=True))
        if differing:
            raise MlclsError(f"the pixels of {differing} of {len(self.pixel_digests)} photos are not PaddleX's")
        return Spread(tuple(self.preprocess_ms))


def _latency_ratio(found: Comparison) -> Spread:
    if found.latency_turns is None:
        raise MlclsError("PaddleX's predict() could not be measured")
    return found.latency_turns.ratio(_SERVED, PaddlexPredict.name)


def _format_row(found: Comparison, contender: str) -> str:
    try:
        rate = found.turns.values(contender)
    except MlclsError:
        return "not measured | - | - | -"
    cells = [f"{rate.median:.3g}", format_spread(rate), "-", "-"]
    if contender != _SERVED:
        ratio = found.turns.ratio(_SERVED, contender)
        cells[2:] = [f"{ratio.median:.2f} times", format_spread(ratio)]
    return " | ".join(cells)


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return value
