"""The picture of a search: throughput against latency of all candidates."""

from __future__ import annotations

from typing import Any

from mlcls.base.pictures import new_figure, save_figure
from mlcls.tuning.comparison import Candidate
from mlcls.tuning.search import Outcome, Search


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


def _draw_line(axes: Any, candidate: Candidate, color: str, caption: str | None, *, is_named: bool) -> None:
    points = [figures for figures in candidate.pooled().values() if len(figures.latencies_s)]
    rates, latencies_ms = [each.images_per_s for each in points], [each.percentile_ms(99) for each in points]
    style = {"linewidth": 1.8, "zorder": 3} if is_named else {"linewidth": 0.9, "zorder": 2}
    axes.plot(rates, latencies_ms, color=color, marker="o", markersize=4, label=caption, **style)
    for figures, *position in zip(points, rates, latencies_ms, strict=True) if is_named else ():
        text, offset = str(figures.concurrency), {"xytext": (4, -9), "textcoords": "offset points"}
        axes.annotate(text, position, **offset, fontsize=7, color=color)
