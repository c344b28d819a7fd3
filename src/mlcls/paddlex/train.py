"""Mode `train` of a PaddleX configuration."""

from __future__ import annotations

import json
from typing import Any

from mlcls.paddlex.config import PaddleXConfig
from mlcls.training.run_folder import RESULT_FILE
from mlcls.training.train import train_model


def run(config: PaddleXConfig) -> dict[str, Any]:
    """Train, and return the content of `train_result.json`, which the training writes; see `mlcls.training.train`."""
    train_model(config.settings)
    result: dict[str, Any] = json.loads((config.Global.output / RESULT_FILE).read_text(encoding="utf-8"))
    return result
