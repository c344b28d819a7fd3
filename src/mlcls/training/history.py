"""What a training did: two tables, kept in the checkpoint and written as CSV files, and a chart of them."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

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
class Progress:
    """How far a training is, and what it did.

    Attributes:
        epoch: Number of epochs done, including their evaluation.
        step: Number of steps done in the current epoch.
        metrics: Metrics of the best and the last evaluation, as in `train_result.json`.
        steps: Table of steps.
        evaluations: Table of evaluations.
        loss_sum: Losses since the last row of steps.
        image_count: Images since then.
    """

    epoch: int = 0
    step: int = 0
    metrics: dict[str, Any] = dataclasses.field(default_factory=dict)
    steps: list[StepRow] = dataclasses.field(default_factory=list)
    evaluations: list[EvaluationRow] = dataclasses.field(default_factory=list)
    loss_sum: float = 0.0
    image_count: int = 0

    @classmethod
    def from_states(cls, states: Mapping[str, Any]) -> Progress:
        """Return the progress in the states of a checkpoint; version 0.1.0 kept the tables apart."""
        return msgspec.convert(states["progress"] | states.get("history", {}), cls)

    def close_row(self, step: int, learning_rate: float) -> StepRow:
        """Add a row for the steps since the last one and return it."""
        row = StepRow(step, self.epoch + 1, learning_rate, self.loss_sum / self.image_count)
        self.steps.append(row)
        self.loss_sum, self.image_count = 0.0, 0
        return row


def format_csv(row_type: type[StepRow] | type[EvaluationRow], rows: Sequence[StepRow | EvaluationRow]) -> str:
    """Return the text of a CSV file with a header line and numbers in full precision."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in dataclasses.fields(row_type))
    writer.writerows(map(dataclasses.astuple, rows))
    return text.getvalue()


def draw_curves(progress: Progress, title: str) -> bytes:
    """Return a chart, a PNG file, of loss, learning rate and mAP over the steps, one above the other.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = new_figure(8, 9)
    loss, rate, score = axes = figure.subplots(3, 1, sharex=True)
    style: dict[str, Any] = {"markersize": 3, "linewidth": 1.2}
    marker = "o" if len(progress.steps) < 40 else ""
    steps = [row.step for row in progress.steps]
    losses = [row.loss for row in progress.steps]
    loss.plot(steps, losses, color="tab:red", marker=marker, **style)
    loss.set_ylabel("loss of an image")
    if losses and 0 < 10 * min(losses) < max(losses):
        loss.set_yscale("log")
    rate.plot(steps, [row.learning_rate for row in progress.steps], color="tab:green", marker=marker, **style)
    rate.set_ylabel("learning rate")
    rate.ticklabel_format(axis="y", style="scientific", scilimits=(-2, 2))
    at = [row.step for row in progress.evaluations]
    for name, label, color in (("map_average", "moving average", "tab:blue"), ("map_weights", "weights", "tab:orange")):
        values = [getattr(row, name) for row in progress.evaluations]
        score.plot(at, values, color=color, marker="o", label=label, **style)
    score.set_ylabel("mAP, validation images")
    score.set_ylim(-0.02, 1.02)
    score.set_xlabel("step")
    score.locator_params(axis="x", integer=True)
    if progress.evaluations:
        score.legend(loc="lower right")
    for panel in axes:
        panel.grid(alpha=0.3)
    figure.suptitle(title)
    return save_figure(figure)
