"""Mode `check_dataset` of a PaddleX configuration: check, convert and split a dataset."""

from __future__ import annotations

import sys
from typing import Any, Final

from mlcls.dataset.check import check_dataset
from mlcls.errors import DatasetError
from mlcls.paddlex.config import PaddleXConfig
from mlcls.paddlex.main import result_path

# Number of problems of a dataset that are printed; the result file has them all.
_PRINTED_PROBLEMS: Final = 20


def run(config: PaddleXConfig) -> dict[str, Any]:
    """Check the dataset, and print the problems and what was changed; the result has `problems` if there are warnings.

    Raises:
        DatasetError: The dataset did not pass; the details have the problems.
    """
    convert, split = config.CheckDataset.convert, config.CheckDataset.split
    report = check_dataset(
        config.Global.dataset_dir,
        config.Global.output,
        convert_coco=convert.enable,
        train_percent=split.train_percent if split.enable else None,
        seed=split.seed,
    )
    problems = report.log.errors + report.log.warnings
    for problem in problems[:_PRINTED_PROBLEMS]:
        print(f"{problem.severity}: {problem}", file=sys.stderr)
    if len(problems) > _PRINTED_PROBLEMS:
        print(f"... and {len(problems) - _PRINTED_PROBLEMS} more, all in {result_path(config)}", file=sys.stderr)
    details = {"problems": [problem.to_dict() for problem in problems]} if problems else {}
    if not report.passed:
        unchanged = "; it was left as it is" if convert.enable or split.enable else ""
        raise DatasetError(
            f"{report.root}: expected a dataset without errors, got {len(report.log.errors)}{unchanged}; see "
            f"{result_path(config)}.",
            {"check_pass": False, **details},
        )
    for step, enabled in (("Convert", convert.enable), ("Split", split.enable)):
        if enabled:
            print(f"{step} dataset successfully !")
    for name, backup in report.backups.items():
        print(f"{name} was kept as {backup}")
    print("Check dataset passed !")
    return {"check_pass": True, **report.result, **details}
