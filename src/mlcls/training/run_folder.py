"""The files of a training, with PaddleX's names, and its log."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import sys
import time
from pathlib import Path
from typing import Any, Final

from mlcls.base.files import write_bytes, write_text
from mlcls.dataset.labels import DATASET_LABELS_FILE
from mlcls.training.checkpoint import SUFFIXES
from mlcls.training.history import EvaluationRow, History, StepRow, draw_curves, format_csv
from mlcls.training.settings import TrainSettings

BEST: Final = "best_model"
LATEST: Final = "latest"
INFERENCE: Final = "inference"
RESULT_FILE: Final = "train_result.json"
CONFIG_FILE: Final = "config.yaml"
LOG_FILE: Final = "train.log"
LABEL_DICT_FILE: Final = "label_dict.txt"


class RunFolder:
    """The output folder of one training."""

    def __init__(self, settings: TrainSettings) -> None:
        self._settings = settings
        self.root = settings.output
        self.best = self.root / BEST
        self.latest = self.root / LATEST

    def begin(self, metrics: dict[str, Any]) -> None:
        """Write what is known before the first step: configuration, labels, and a result that is not done.

        Args:
            metrics: Metrics so far; empty unless the training is resumed.
        """
        import yaml

        config = yaml.safe_dump(self._whole_config(), sort_keys=False, allow_unicode=True)
        write_text(self.root / CONFIG_FILE, config)
        shutil.copyfile(self._settings.dataset_dir / DATASET_LABELS_FILE, self.root / LABEL_DICT_FILE)
        self.write_result(done=False, metrics=metrics)

    def write_progress(self, history: History, metrics: dict[str, Any]) -> None:
        """Update curves and result of a training in progress."""
        self.write_curves(history)
        self.write_result(done=False, metrics=metrics)

    def write_curves(self, history: History) -> None:
        """Update both tables and the chart."""
        folder = self.root / "curves"
        write_text(folder / "steps.csv", format_csv(StepRow, history.steps))
        write_text(folder / "evaluations.csv", format_csv(EvaluationRow, history.evaluations))
        write_bytes(
            folder / "curves.png", draw_curves(history, f"{self._settings.model}, {self._settings.dataset_dir.name}")
        )

    def write_result(self, *, done: bool, metrics: dict[str, Any]) -> None:
        """Write `train_result.json`: PaddleX's fields, paths relative to the folder, and `metrics` and `curves`.

        Args:
            done: Whether the training is complete.
            metrics: Metrics of the best model; `MultiLabelMAP` is its score.
        """
        score = metrics.get("MultiLabelMAP", "")
        document = {
            "model_name": self._settings.model,
            "done_flag": done,
            "config": CONFIG_FILE,
            "label_dict": LABEL_DICT_FILE,
            "train_log": LOG_FILE,
            "visualdl_log": "",
            "models": {
                "last_1": self._model_files(LATEST, metrics.get("last_MultiLabelMAP", "")),
                "best": self._model_files(BEST, score),
            },
            "metrics": metrics,
            "curves": ["curves/curves.png", "curves/steps.csv", "curves/evaluations.csv"],
        }
        write_text(self.root / RESULT_FILE, json.dumps(document, indent=2, ensure_ascii=False) + "\n")

    def read_result(self) -> dict[str, Any]:
        """Return the content of `train_result.json`."""
        result: dict[str, Any] = json.loads((self.root / RESULT_FILE).read_text(encoding="utf-8"))
        return result

    def _whole_config(self) -> dict[str, Any]:
        """Return all sections of a PaddleX configuration, in which the other modes find this training's model."""
        weights = str(self.best / f"{BEST}.pdparams")
        return {
            **self._settings.to_config(),
            "CheckDataset": {
                "convert": {"enable": False, "src_dataset_type": None},
                "split": {"enable": False, "train_percent": None, "val_percent": None},
            },
            "Evaluate": {"weight_path": weights, "log_interval": 1},
            "Export": {"weight_path": weights},
            "Predict": {"batch_size": 1, "model_dir": str(self.best / INFERENCE), "input": "photo.jpg"},
        }

    def _model_files(self, name: str, score: float | str) -> dict[str, Any]:
        def present(path: str) -> str:
            return path if (self.root / path).is_file() else ""

        graph = f"{name}/{INFERENCE}/inference"
        return {
            "score": "" if isinstance(score, float) and math.isnan(score) else score,
            **{suffix: present(f"{name}/{name}.{suffix}") for suffix in SUFFIXES},
            "inference_config": present(f"{graph}.yml"),
            "pdmodel": present(f"{graph}.json"),  # PaddleX's name for the field; its graphs are JSON files now
            "pdiparams": present(f"{graph}.pdiparams"),
            "pdiparams.info": "",
        }


class RunLog:
    """Writes lines to `train.log` and to stdout."""

    def __init__(self, path: Path | None, *, append: bool) -> None:
        """Open the log.

        Args:
            path: The file; None for a process other than the first, which logs nothing.
            append: Whether to append to an existing file.
        """
        self._file = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a" if append else "w", encoding="utf-8")

    def write(self, text: str) -> None:
        """Write one line, in the file with the time."""
        if self._file is None:
            return
        from tqdm import tqdm

        self._file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
        self._file.flush()
        tqdm.write(text, file=sys.stdout)  # above a progress bar, if any
        sys.stdout.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


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

    @classmethod
    def of(cls, folder: RunFolder, metrics: dict[str, Any]) -> TrainReport:
        """Return the report of a folder with these metrics."""
        return cls(
            output=folder.root,
            mean_average_precision=metrics["MultiLabelMAP"],
            best_epoch=metrics["best_epoch"],
            best_weights=metrics["best_weights"],
            weights=folder.best / f"{BEST}.pdparams",
            inference=folder.best / INFERENCE,
        )

    @classmethod
    def read(cls, folder: RunFolder) -> TrainReport:
        """Return the report of a training that another process did."""
        return cls.of(folder, folder.read_result()["metrics"])
