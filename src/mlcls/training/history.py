"""What a training did: two tables, kept in the checkpoint and written as CSV files, and a chart of them."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Sequence
from typing import Any

from mlcls.base.pictures import new_figure, save_figure


@dataclasses.dataclass(frozen=True)
class StepRow:
    """The steps since the previous row.

    Attributes:
        step: Steps done in all.
        epoch: Epoch of the last step, from 1.
        learning_rate: Learning rate of the last step.
        loss: Mean loss per image, summed over the labels; with several processes, over the first one's images.
    """

    step: int
    epoch: int
    learning_rate: float
    loss: float


@dataclasses.dataclass(frozen=True)
class EvaluationRow:
    """One evaluation on the validation images.

    Attributes:
        step: Steps done in all.
        epoch: Epochs done.
        map_weights: mAP of the weights themselves, from 0 to 1.
        map_average: mAP of their moving average.
    """

    step: int
    epoch: int
    map_weights: float
    map_average: float


@dataclasses.dataclass
class History:
    """Both tables, and the sums for the next row of steps."""

    steps: list[StepRow] = dataclasses.field(default_factory=list)
    evaluations: list[EvaluationRow] = dataclasses.field(default_factory=list)
    loss_sum: float = 0.0
    image_count: int = 0

    def add_loss(self, loss_sum: float, image_count: int) -> None:
        """Add the losses of a step."""
        self.loss_sum += loss_sum
        self.image_count += image_count

    def close_row(self, step: int, epoch: int, learning_rate: float) -> StepRow:
        """Add a row for the steps since the last one and return it."""
        row = StepRow(step, epoch, learning_rate, self.loss_sum / self.image_count)
        self.steps.append(row)
        self.loss_sum, self.image_count = 0.0, 0
        return row

    def to_state(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return dataclasses.asdict(self)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> History:
        """Return the history with this state."""
        return cls(
            [StepRow(**row) for row in state["steps"]],
            [EvaluationRow(**row) for row in state["evaluations"]],
            state["loss_sum"],
            state["image_count"],
        )


def format_csv(row_type: type[StepRow] | type[EvaluationRow], rows: Sequence[StepRow | EvaluationRow]) -> str:
    """Return the text of a CSV file with a header line and numbers in full precision."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in dataclasses.fields(row_type))
    writer.writerows(dataclasses.astuple(row) for row in rows)
    return text.getvalue()


def draw_curves(history: History, title: str) -> bytes:
    """Draw loss, learning rate and mAP over the steps, one above the other.

    Args:
        history: What was done so far; may be empty.
        title: Title of the chart.

    Returns:
        A PNG file.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = new_figure(8, 9)
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
    axes[2].locator_params(axis="x", integer=True)
    if history.evaluations:
        axes[2].legend(loc="lower right")
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.suptitle(title)
    return save_figure(figure)
