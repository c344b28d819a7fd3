"""The files of a training, with PaddleX's names, and its log."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any, Final

from mlcls.base.files import write_bytes, write_text
from mlcls.dataset.labels import DATASET_LABELS_FILE
from mlcls.training.checkpoint import SUFFIXES
from mlcls.training.history import EvaluationRow, Progress, StepRow, draw_curves, format_csv
from mlcls.training.settings import TrainSettings

BEST: Final = "best_model"
LATEST: Final = "latest"
INFERENCE: Final = "inference"
RESULT_FILE: Final = "train_result.json"
CONFIG_FILE: Final = "config.yaml"
LOG_FILE: Final = "train.log"
LABEL_DICT_FILE: Final = "label_dict.txt"


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

        with (self.root / LOG_FILE).open("a", encoding="utf-8") as file:
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
