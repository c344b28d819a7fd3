"""Run the modes of a PaddleX configuration, and write the result file of each."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from mlcls.errors import ConfigError, DatasetError, MlclsError
from mlcls.paddlex.config import PaddleXConfig

# Number of problems of a dataset that are printed; the result file has them all.
_PRINTED_PROBLEMS: Final = 20


def run_mode(config: PaddleXConfig) -> int:
    """Run the mode that `Global.mode` names.

    Like PaddleX, write `MODE_result.json` into `Global.output`, with `done_flag` false, `err_type` and `err_msg` if the
    mode fails. The modes `export` and `predict` have one too, which PaddleX writes only if they fail.

    Args:
        config: The configuration.

    Returns:
        Exit status, 0.

    Raises:
        ConfigError: There is no such mode.
        MlclsError: The mode failed.
    """
    mode = MODES.get(config.Global.mode)
    if mode is None:
        raise ConfigError(f"Global.mode: expected one of {', '.join(MODES)}, got {config.Global.mode!r}.")
    try:
        result = mode(config)
    except MlclsError as error:
        failure = {"done_flag": False, "err_type": type(error).__name__, "err_msg": str(error), **error.details}
        _write_result(config, {**_kept_result(config), **failure})
        raise
    _write_result(config, {"done_flag": True, **result})
    return 0


def check_dataset(config: PaddleXConfig) -> Mapping[str, Any]:
    """Run mode `check_dataset`, and print the problems and what was changed.

    Returns:
        The result, with `problems` if there are warnings.

    Raises:
        DatasetError: The dataset did not pass; the details have the problems.
    """
    from mlcls.dataset.check import check_dataset as check

    section = config.CheckDataset
    report = check(
        Path(config.Global.dataset_dir),
        Path(config.Global.output),
        convert_coco=section.convert.enable,
        train_percent=section.split.train_percent if section.split.enable else None,
        seed=section.split.seed,
    )
    problems = report.log.errors + report.log.warnings
    for problem in problems[:_PRINTED_PROBLEMS]:
        print(f"{problem.severity}: {problem}", file=sys.stderr)
    result_file = _result_path(config)
    if len(problems) > _PRINTED_PROBLEMS:
        print(f"... and {len(problems) - _PRINTED_PROBLEMS} more, all in {result_file}", file=sys.stderr)
    details = {"problems": [problem.to_dict() for problem in problems]} if problems else {}
    if not report.passed:
        count = len(report.log.errors)
        unchanged = "; it was left as it is" if section.convert.enable or section.split.enable else ""
        raise DatasetError(
            f"{report.root}: expected a dataset without errors, got {count}{unchanged}; see {result_file}.",
            {"check_pass": False, **details},
        )
    for step, enabled in (("Convert", section.convert.enable), ("Split", section.split.enable)):
        if enabled:
            print(f"{step} dataset successfully !")
    for name, backup in report.backups.items():
        print(f"{name} was kept as {backup}")
    print("Check dataset passed !")
    return {"check_pass": True, **report.result, **details}


def train(config: PaddleXConfig) -> Mapping[str, Any]:
    """Run mode `train`; see `mlcls.training.train`."""
    from mlcls.training.train import train_from_config

    return train_from_config(dataclasses.asdict(config))


def evaluate(config: PaddleXConfig) -> Mapping[str, Any]:
    """Run mode `evaluate`; see `mlcls.paddlex.evaluate`."""
    from mlcls.paddlex.evaluate import evaluate_from_config

    return evaluate_from_config(dataclasses.asdict(config))


def export(config: PaddleXConfig) -> Mapping[str, Any]:
    """Run mode `export`; see `mlcls.paddlex.export`."""
    from mlcls.paddlex.export import export_weights

    return export_weights(config)


def predict(config: PaddleXConfig) -> Mapping[str, Any]:
    """Run mode `predict`; see `mlcls.paddlex.predict`."""
    from mlcls.paddlex.predict import predict_images

    return predict_images(config)


# Each mode returns its part of the result file.
MODES: Final[Mapping[str, Callable[[PaddleXConfig], Mapping[str, Any]]]] = {
    "check_dataset": check_dataset,
    "train": train,
    "evaluate": evaluate,
    "export": export,
    "predict": predict,
}


def _result_path(config: PaddleXConfig) -> Path:
    return Path(config.Global.output) / f"{config.Global.mode}_result.json"


def _kept_result(config: PaddleXConfig) -> Mapping[str, Any]:
    """Return what the existing result file says that remains true after a failure.

    A training updates its file as it runs, and its checkpoints and metrics remain valid after a failure. The other
    modes write theirs at the end, so that an existing one says nothing about the run that failed.
    """
    if config.Global.mode != "train":
        return {}
    try:
        document = json.loads(_result_path(config).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def _write_result(config: PaddleXConfig, result: Mapping[str, Any]) -> None:
    from mlcls.base.files import write_text

    write_text(_result_path(config), json.dumps(result, indent=2, ensure_ascii=False) + "\n")
