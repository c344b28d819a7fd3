"""The curves of a load test: users, throughput, latency, failures, and the server's memory and processor over time."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, Final

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from benchmarks.load.locustfiles.outcomes import FAILURES

_COLORS: Final = ("tab:red", "tab:purple", "tab:brown", "black", "tab:pink", "tab:orange")


def draw_load(timeline: Sequence[Mapping[str, Any]], title: str) -> bytes:
    """Draw the curves above one another.

    Args:
        timeline: Rows of `load_report.make_timeline`.
        title: Of the picture.

    Returns:
        A PNG file.
    """
    watched = any(row["memory_bytes"] is not None for row in timeline)
    # without pyplot, which would take a backend and keep the figure
    figure = Figure(figsize=(9, 11 if watched else 8), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots(6 if watched else 4, 1, sharex=True)
    seconds = [row["elapsed_s"] for row in timeline]

    def draw(axis: Any, name: str, scale: float = 1.0, **style: Any) -> None:
        values = [float("nan") if row[name] is None else row[name] * scale for row in timeline]
        axis.plot(seconds, values, **{"linewidth": 1.3, **style})

    def add_legend(axis: Any) -> None:
        axis.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=6, fontsize="small", frameon=False)

    draw(axes[0], "users", drawstyle="steps-post", color="tab:gray")
    axes[0].set_ylabel("users")
    draw(axes[1], "right_per_s", label="answered right", color="tab:green")
    draw(axes[1], "refused_per_s", label="bad images refused", color="tab:olive")
    axes[1].set_ylabel("images/s")
    add_legend(axes[1])
    draw(axes[2], "p50_ms", label="p50", color="tab:blue")
    draw(axes[2], "p99_ms", label="p99", color="tab:cyan")
    axes[2].set_ylabel("latency, ms")
    axes[2].set_yscale("log")
    axes[2].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes[2].yaxis.set_major_formatter(ScalarFormatter())
    axes[2].yaxis.set_minor_formatter(NullFormatter())
    add_legend(axes[2])
    for kind, color in zip(FAILURES, _COLORS, strict=True):
        rates = [row["failures_per_s"].get(kind.value, 0.0) for row in timeline]
        if any(rates):
            axes[3].plot(seconds, rates, label=kind.value, color=color, linewidth=1.3)
    if axes[3].lines:
        add_legend(axes[3])
    else:
        axes[3].text(0.5, 0.5, "none", ha="center", va="center", transform=axes[3].transAxes, color="tab:gray")
    axes[3].set_ylabel("failures, images/s")
    if watched:
        draw(axes[4], "memory_bytes", 1e-6, color="tab:blue")
        axes[4].set_ylabel("server, MB (PSS)")
        draw(axes[5], "cores", color="tab:orange")
        axes[5].set_ylabel("server, cores")
    for index, axis in enumerate(axes):
        axis.grid(alpha=0.3)
        if index != 2:
            axis.set_ylim(0, 1.1 * axis.get_ylim()[1])
    axes[-1].set_xlabel("seconds since the start")
    figure.suptitle(title, fontsize="medium")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
