"""Run the modes of a PaddleX configuration, and write the result file of each."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlcls.base.files import write_text
from mlcls.errors import MlclsError
from mlcls.paddlex.config import PaddleXConfig


def run_mode(config: PaddleXConfig) -> None:
    """Run the mode that `Global.mode` names: the function `run` of the module with its name, which returns its result.

    Like PaddleX, write `MODE_result.json` into `Global.output`, with `done_flag` false, `err_type` and `err_msg` if the
    mode fails. The modes `export` and `predict` have one too, which PaddleX writes only if they fail.

    Raises:
        MlclsError: The mode failed.
    """
    mode = importlib.import_module(f"mlcls.paddlex.{config.Global.mode}")
    try:
        result = mode.run(config)
    except MlclsError as error:
        failure = {"done_flag": False, "err_type": type(error).__name__, "err_msg": str(error), **error.details}
        _write_result(config, {**_kept_result(config), **failure})
        raise
    _write_result(config, {"done_flag": True, **result})


def result_path(config: PaddleXConfig) -> Path:
    """Return the path of the mode's result file."""
    return config.Global.output / f"{config.Global.mode}_result.json"


def _kept_result(config: PaddleXConfig) -> Mapping[str, Any]:
    """Return what the existing result file says that remains true after a failure.

    A training updates its file as it runs, and its checkpoints and metrics remain valid after a failure. The other
    modes write theirs at the end, so that an existing one says nothing about the run that failed.
    """
    if config.Global.mode != "train":
        return {}
    try:
        document = json.loads(result_path(config).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def _write_result(config: PaddleXConfig, result: Mapping[str, Any]) -> None:
    write_text(result_path(config), json.dumps(result, indent=2, ensure_ascii=False) + "\n")
