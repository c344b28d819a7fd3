"""PaddleX's own check of datasets; run by the Python of `.venv-paddlex`, which has PaddleX but not mlcls.

    python tests/support/paddlex_dataset_check.py RESULTS.json CONFIG.yaml OUTPUT DATASET [DATASET ...]

Writes PaddleX's result for each dataset, or the text of its error under `error`. A dataset named `by_paddlex` is in
COCO format, and PaddleX converts it first.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

# Otherwise PaddleX checks whether its model hosts can be reached.
os.environ["PADDLE_PDX_DISABLE_MODEL_SOURCE_CHECK"] = "True"


def check(config: str, output: Path, dataset: Path) -> dict[str, Any]:
    """Run PaddleX's checker as its `main.py` does; `AssertionError` is one of its errors."""
    from paddlex.modules.base.dataset_checker import build_dataset_checker
    from paddlex.utils.config import get_config

    overrides = [f"Global.dataset_dir='{dataset}'", f"Global.output='{output / dataset.name}'"]
    if dataset.name == "by_paddlex":
        overrides += ["CheckDataset.convert.enable=True", "CheckDataset.convert.src_dataset_type='COCO'"]
    try:
        return dict(build_dataset_checker(get_config(config, overrides)).check())
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def main() -> None:
    import paddlex.modules.multilabel_classification.dataset_checker  # noqa: F401  (registers the checker)

    target, config, output, *datasets = sys.argv[1:]
    results = {Path(dataset).name: check(config, Path(output), Path(dataset)) for dataset in datasets}
    Path(target).write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    main()
