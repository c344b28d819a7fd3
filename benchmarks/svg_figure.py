"""Matplotlib figures as SVG files that are reproducible: the same numbers give the same bytes."""

from __future__ import annotations

import io
from typing import Any, Literal

from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter


def make_figure(size: tuple[float, float], rows: int = 1, columns: int = 1) -> tuple[Figure, list[Any]]:
    """Return an empty figure and its axes, row by row.

    Args:
        size: Width and height in inches.
        rows: Rows of axes.
        columns: Columns of axes.
    """
    figure = Figure(figsize=size, layout="constrained")  # pyplot would choose a backend and keep the figure
    FigureCanvasSVG(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for each in axes:
        each.grid(alpha=0.3)
        each.set_axisbelow(True)
    return figure, axes


def set_log_scale(axes: Any, which: Literal["x", "y"]) -> None:
    """Set a logarithmic scale with plain numbers at 1, 2, 5, 10."""
    axes.set(**{f"{which}scale": "log"})
    axis = getattr(axes, f"{which}axis")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def to_svg(figure: Figure) -> str:
    """Return the figure as the text of an SVG file."""
    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": "mlcls"}):  # otherwise its ids are random
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
