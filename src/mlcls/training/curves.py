"""A picture of a training: loss, learning rate and mAP over the steps."""

from __future__ import annotations

import io
from typing import Any

from mlcls.errors import MissingExtraError
from mlcls.training.history import History


def draw_curves(history: History, title: str) -> bytes:
    """Draw the three curves above one another.

    Args:
        history: What was done so far; may be empty.
        title: Of the picture.

    Returns:
        A PNG file.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ModuleNotFoundError as error:
        raise MissingExtraError("train", str(error.name)) from error

    # without pyplot, which would take a backend and keep the figure
    figure = Figure(figsize=(8, 9), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots(3, 1, sharex=True)
    marker = "o" if len(history.steps) < 40 else ""
    steps = [row.step for row in history.steps]
    losses = [row.loss for row in history.steps]
    axes[0].plot(steps, losses, color="tab:red", marker=marker, markersize=3, linewidth=1.2)
    axes[0].set_ylabel("loss of an image")
    if losses and 0 < 10 * min(losses) < max(losses):
        axes[0].set_yscale("log")
    axes[1].plot(steps, [row.learning_rate for row in history.steps], color="tab:green", marker=marker, markersize=3)
    axes[1].set_ylabel("learning rate")
    axes[1].ticklabel_format(axis="y", style="scientific", scilimits=(-2, 2))
    at = [row.step for row in history.evaluations]
    for name, color in (("map_average", "tab:blue"), ("map_weights", "tab:orange")):
        label = "moving average" if name == "map_average" else "weights"
        values = [getattr(row, name) for row in history.evaluations]
        axes[2].plot(at, values, color=color, marker="o", markersize=3, linewidth=1.2, label=label)
    axes[2].set_ylabel("mAP, validation images")
    axes[2].set_ylim(-0.02, 1.02)
    axes[2].set_xlabel("step")
    axes[2].xaxis.set_major_locator(MaxNLocator(integer=True))
    if history.evaluations:
        axes[2].legend(loc="lower right")
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.suptitle(title)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
