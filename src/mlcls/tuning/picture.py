"""The picture of a search: throughput against latency of all candidates."""

from __future__ import annotations

import io
from typing import Any, Final

from mlcls.errors import MissingExtraError
from mlcls.repository.settings import ServingSettings
from mlcls.tuning.candidate import Candidate
from mlcls.tuning.search import Outcome, Search

_FIRST: Final = "#3b6fb6"
_CHOSEN: Final = "#c44e3c"
_OTHERS: Final = "#b5b5b5"


def draw_search(search: Search, outcome: Outcome | None, title: str) -> bytes:
    """Draw a line for each candidate, with a point for each concurrency.

    Args:
        search: The search.
        outcome: Its outcome; None if it was interrupted.
        title: Title of the picture.

    Returns:
        A PNG file.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingExtraError("train", str(error.name)) from error

    # without pyplot, which would choose a backend and keep the figure
    figure = Figure(figsize=(9, 6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots()
    chosen = outcome.settings if outcome is not None else None
    first = next(iter(search.candidates), None)
    captioned = False
    for settings, candidate in search.candidates.items():
        if settings not in (first, chosen):
            _draw_line(axes, candidate, _OTHERS, None if captioned else "other candidates", 2)
            captioned = True
    for settings, color, caption in _highlights(first, chosen, outcome):
        _draw_line(axes, search.candidates[settings], color, f"{caption}: {settings}", 3)
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
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.legend(loc="outside lower center", frameon=False, fontsize=9)
    axes.set_title(title, fontsize=10, parse_math=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _highlights(
    first: ServingSettings | None, chosen: ServingSettings | None, outcome: Outcome | None
) -> list[tuple[ServingSettings, str, str]]:
    word = "nearest" if outcome is not None and outcome.status == "missed" else "chosen"
    if first is None:
        return []
    if chosen == first:
        return [(first, _CHOSEN, f"first and {word}")]
    return [(first, _FIRST, "first")] + ([(chosen, _CHOSEN, word)] if chosen is not None else [])


def _draw_line(axes: Any, candidate: Candidate, color: str, caption: str | None, order: int) -> None:
    points = [figures for figures in candidate.pooled().values() if len(figures.latencies_s)]
    rates = [figures.images_per_s for figures in points]
    latencies_ms = [figures.percentile_ms(99) for figures in points]
    width = 1.8 if order > 2 else 0.9
    axes.plot(rates, latencies_ms, color=color, marker="o", markersize=4, linewidth=width, label=caption, zorder=order)
    if order > 2:
        for figures, rate, latency_ms in zip(points, rates, latencies_ms, strict=True):
            axes.annotate(
                str(figures.concurrency),
                (rate, latency_ms),
                xytext=(4, -9),
                textcoords="offset points",
                fontsize=7,
                color=color,
            )
