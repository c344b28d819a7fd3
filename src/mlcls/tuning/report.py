"""The evidence of a search: a JSON document, lines for the user, and a picture."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any, Final

import msgspec

from mlcls.base.pictures import new_figure, save_figure
from mlcls.repository.settings import Target
from mlcls.tuning.closed_loop import LoopFigures
from mlcls.tuning.comparison import Candidate, Goal, Verdict
from mlcls.tuning.search import Outcome, Search

SCHEMA_VERSION: Final = 1

# With fewer answers, the 99th percentile is hardly more than the slowest one.
FEW_ANSWERS: Final = 100


def report_name(target: Target, suffix: str = ".json") -> str:
    """Return the name of the file with a target's evidence, or with the suffix `.png` of its picture."""
    return f"tuning_{target}{suffix}"


def make_report(search: Search, outcome: Outcome | None, circumstances: Mapping[str, Any]) -> dict[str, Any]:
    """Return the whole evidence; the outcome is None if the search was interrupted.

    Where and how it was done, the circumstances, are facts by name that become part of the document.
    """
    goal = search.goal
    return {
        "schema_version": SCHEMA_VERSION,
        "mlcls": version("mlcls"),
        **circumstances,
        "goal": dataclasses.asdict(goal),
        "status": "interrupted" if outcome is None else outcome.status,
        "choice": None if outcome is None else _choice(outcome, goal),
        "candidates": [_candidate(candidate, goal) for candidate in search.candidates.values()],
        "comparisons": [_comparison(verdict) for verdict in search.verdicts],
    }


def format_candidates(search: Search) -> str:
    """Return a table of all candidates, each at its best concurrency, or else at the one with the lowest latency."""
    width = max((len(str(settings)) for settings in search.candidates), default=0)
    lines = [
        f"{'':{width}}{'concurrency':>13}{'images/s':>10}{'p50 ms':>9}{'p99 ms':>9}{'answers':>9}  "
        + ("meets target" if search.goal.p99_ms is not None else "")
    ]
    for settings, candidate in search.candidates.items():
        best = candidate.best(search.goal)
        figures = best or candidate.nearest()
        if figures is None or candidate.fault is not None:
            lines.append(f"{settings!s:{width}}  not measured: {candidate.fault or 'no answers'}")
            continue
        meets = "" if search.goal.p99_ms is None else "no" if best is None else "yes"
        latencies = f"{figures.percentile_ms(50):9.1f}{figures.percentile_ms(99):9.1f}{len(figures.latencies_s):9}"
        line = f"{settings!s:{width}}{figures.concurrency:13}{figures.images_per_s:10.1f}{latencies}  {meets}"
        lines.append(line.rstrip())
    return "\n".join(lines)


def describe_outcome(outcome: Outcome) -> Iterator[str]:
    """Yield the choice and the reason, with a warning if it rests on few answers."""
    figures = outcome.figures
    if outcome.status == "missed":
        yield f"Nearest to the target: {outcome.settings}."
    else:
        yield f"Chosen: {outcome.settings}: {outcome.reason}."
        yield (
            f"At concurrency {figures.concurrency}: {figures.images_per_s:.1f} images/s, p50 "
            f"{figures.percentile_ms(50):.1f} ms, p99 {figures.percentile_ms(99):.1f} ms."
        )
    answers = len(figures.latencies_s)
    if answers < FEW_ANSWERS:
        yield f"Warning: its p99 is that of only {answers} answers, hardly more than the slowest; increase --minutes."


def draw_search(search: Search, outcome: Outcome | None, title: str) -> bytes:
    """Draw a line for each candidate, with a point for each concurrency, as a PNG file.

    The outcome is None if the search was interrupted.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = new_figure(9, 6)
    axes: Any = figure.subplots()
    first = next(iter(search.candidates), None)
    names = {first: ("first", "#3b6fb6")}
    if outcome is not None:
        word = "nearest" if outcome.status == "missed" else "chosen"
        names[outcome.settings] = (f"first and {word}" if outcome.settings == first else word, "#c44e3c")
    others = [candidate for settings, candidate in search.candidates.items() if settings not in names]
    for number, candidate in enumerate(others):
        _draw_line(axes, candidate, "#b5b5b5", None if number else "other candidates", is_named=False)
    for settings, (name, color) in names.items():
        if settings is not None:
            _draw_line(axes, search.candidates[settings], color, f"{name}: {settings}", is_named=True)
    if search.goal.p99_ms is not None:
        label = f"target, {search.goal.p99_ms:g} ms"
        axes.axhline(search.goal.p99_ms, color="#222222", linestyle="--", linewidth=1, label=label)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.tick_params(axis="y", which="minor", labelsize=7)
    axes.set_xlim(left=0)
    axes.set_xlabel("throughput, images/s")
    axes.set_ylabel("99th percentile of the latency, ms (numbers: concurrency)")
    axes.grid(alpha=0.3, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", frameon=False, fontsize=9)
    axes.set_title(title, fontsize=10, parse_math=False)
    return save_figure(figure)


def _choice(outcome: Outcome, goal: Goal) -> dict[str, Any]:
    settings = msgspec.to_builtins(outcome.settings)
    return {"settings": settings, **_figures(outcome.figures, goal), "reason": outcome.reason}


def _candidate(candidate: Candidate, goal: Goal) -> dict[str, Any]:
    points = []
    for concurrency, figures in candidate.pooled().items():
        rates = [turn[concurrency].images_per_s for turn in candidate.turns if concurrency in turn]
        point = {**_figures(figures, goal), "images_per_s_of_turns": [_round(rate) for rate in rates]}
        if min(rates):
            point["spread"] = _round((max(rates) - min(rates)) / 2 / statistics.median(rates), 3)
        points.append(point)
    return {"settings": msgspec.to_builtins(candidate.settings), "fault": candidate.fault, "points": points}


def _figures(figures: LoopFigures, goal: Goal) -> dict[str, Any]:
    return {
        "concurrency": figures.concurrency,
        "images_per_s": _round(figures.images_per_s),
        "p50_ms": _round(figures.percentile_ms(50)),
        "p99_ms": _round(figures.percentile_ms(99)),
        "answers": len(figures.latencies_s),
        "meets_target": goal.is_met(figures),
    }


def _comparison(verdict: Verdict) -> dict[str, Any]:
    return {
        "subject": verdict.subject,
        "incumbent": msgspec.to_builtins(verdict.incumbent),
        "challenger": msgspec.to_builtins(verdict.challenger),
        "figure": verdict.figure,
        "ratios": [_round(ratio, 3) for ratio in verdict.ratios],
        "median_ratio": _round(verdict.median_ratio, 3),
        "spread": _round(verdict.spread, 3),
        "taken": verdict.is_taken,
        "reason": verdict.reason,
    }


def _round(value: float, digits: int = 2) -> float | None:
    """Return a rounded number; None for NaN, which JSON does not have."""
    return round(value, digits) if value == value else None


def _draw_line(axes: Any, candidate: Candidate, color: str, caption: str | None, *, is_named: bool) -> None:
    points = [figures for figures in candidate.pooled().values() if len(figures.latencies_s)]
    rates, latencies_ms = [each.images_per_s for each in points], [each.percentile_ms(99) for each in points]
    style = {"linewidth": 1.8, "zorder": 3} if is_named else {"linewidth": 0.9, "zorder": 2}
    axes.plot(rates, latencies_ms, color=color, marker="o", markersize=4, label=caption, **style)
    for figures, *position in zip(points, rates, latencies_ms, strict=True) if is_named else ():
        text, offset = str(figures.concurrency), {"xytext": (4, -9), "textcoords": "offset points"}
        axes.annotate(text, position, **offset, fontsize=7, color=color)
