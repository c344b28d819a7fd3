"""What a training did: its tables, their chart, its log, and the folder of its files, with PaddleX's names."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from mlcls.base.files import naming, write_bytes, write_text
from mlcls.base.pictures import new_figure, save_figure
from mlcls.dataset.labels import DATASET_LABELS_FILE
from mlcls.training.checkpoint import SUFFIXES
from mlcls.training.settings import TrainSettings

BEST: Final = "best_model"
LATEST: Final = "latest"
INFERENCE: Final = "inference"
RESULT_FILE: Final = "train_result.json"
CONFIG_FILE: Final = "config.yaml"
LOG_FILE: Final = "train.log"
LABEL_DICT_FILE: Final = "label_dict.txt"


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


@dataclasses.dataclass(frozen=True)
class TrainReport:
    """How a training ended.

    Attributes:
        output: Folder of the training.
        mean_average_precision: Best mAP on the validation images, from 0 to 1.
        best_epoch: Number of the epoch that reached it, from 1.
        best_weights: The weights that reached it: `average` or `weights`.
        weights: The best model's `.pdparams`.
        inference: The best model as a PaddleX inference model.
    """

    output: Path
    mean_average_precision: float
    best_epoch: int
    best_weights: str
    weights: Path
    inference: Path


class RunFolder:
    """The output folder `root` of one training, written to by one process.

    `best` is the folder of the best model, with its `weights` and its `inference` model; `latest` is a checkpoint.
    """

    def __init__(self, settings: TrainSettings) -> None:
        self._settings = settings
        self.root = settings.output
        self.best = self.root / BEST
        self.latest = self.root / LATEST
        self.weights = self.best / f"{BEST}.pdparams"
        self.inference = self.best / INFERENCE

    def begin(self, *, resumed: bool) -> None:
        """Write what is known before the first step: the labels, and a PaddleX configuration that repeats the training.

        With the same configuration, the other modes find this training's model. The log is continued if resumed.
        """
        import yaml

        if not resumed:
            (self.root / LOG_FILE).unlink(missing_ok=True)

        config = {
            **self._settings.to_config(),
            "CheckDataset": {
                "convert": {"enable": False, "src_dataset_type": None},
                "split": {"enable": False, "train_percent": None, "val_percent": None},
            },
            "Evaluate": {"weight_path": str(self.weights), "log_interval": 1},
            "Export": {"weight_path": str(self.weights)},
            "Predict": {"batch_size": 1, "model_dir": str(self.inference), "input": "photo.jpg"},
        }
        write_text(self.root / CONFIG_FILE, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
        shutil.copyfile(self._settings.dataset_dir / DATASET_LABELS_FILE, self.root / LABEL_DICT_FILE)

    def log(self, text: str) -> None:
        """Write one line to stdout and, with the time, to `train.log`."""
        from tqdm import tqdm

        with naming(self.root / LOG_FILE), (self.root / LOG_FILE).open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
        tqdm.write(text, file=sys.stdout)  # above a progress bar, if any
        sys.stdout.flush()

    def write_progress(self, progress: Progress, *, done: bool = False) -> None:
        """Update both tables, their chart, and `train_result.json`; `done` if the training is complete.

        The result has PaddleX's fields, paths relative to the folder, and `metrics` and `curves`.
        """
        curves = {
            "curves/curves.png": draw_curves(progress, f"{self._settings.model}, {self._settings.dataset_dir.name}"),
            "curves/steps.csv": format_csv(StepRow, progress.steps).encode(),
            "curves/evaluations.csv": format_csv(EvaluationRow, progress.evaluations).encode(),
        }
        for path, content in curves.items():
            write_bytes(self.root / path, content)
        result = {
            "model_name": self._settings.model,
            "done_flag": done,
            "config": CONFIG_FILE,
            "label_dict": LABEL_DICT_FILE,
            "train_log": LOG_FILE,
            "visualdl_log": "",
            "models": {
                "last_1": self._model_files(LATEST, progress.metrics.get("last_MultiLabelMAP", "")),
                "best": self._model_files(BEST, progress.metrics.get("MultiLabelMAP", "")),
            },
            "metrics": progress.metrics,
            "curves": list(curves),
        }
        write_text(self.root / RESULT_FILE, json.dumps(result, indent=2, ensure_ascii=False) + "\n")

    def report(self) -> TrainReport:
        """Return the report of a training that is complete."""
        metrics = json.loads((self.root / RESULT_FILE).read_text(encoding="utf-8"))["metrics"]
        return TrainReport(
            output=self.root,
            mean_average_precision=metrics["MultiLabelMAP"],
            best_epoch=metrics["best_epoch"],
            best_weights=metrics["best_weights"],
            weights=self.weights,
            inference=self.inference,
        )

    def _model_files(self, name: str, score: float | str) -> dict[str, Any]:
        graph = f"{name}/{INFERENCE}/inference"
        files = {suffix: f"{name}/{name}.{suffix}" for suffix in SUFFIXES}
        # pdmodel is PaddleX's name for the field; its graphs are JSON files now
        files |= {
            "inference_config": f"{graph}.yml",
            "pdmodel": f"{graph}.json",
            "pdiparams": f"{graph}.pdiparams",
            "pdiparams.info": f"{graph}.pdiparams.info",
        }
        return {"score": score, **{key: path if (self.root / path).is_file() else "" for key, path in files.items()}}


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
        # outside, where no curve is
        score.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, borderaxespad=0.2)
    for panel in axes:
        panel.grid(alpha=0.3)
    figure.suptitle(title)
    return save_figure(figure)
