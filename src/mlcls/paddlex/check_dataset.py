"""Mode `check_dataset` of a PaddleX configuration: check, convert and split a dataset."""

from __future__ import annotations

from typing import Any

from mlcls.dataset.check import check_dataset
from mlcls.errors import DatasetError
from mlcls.paddlex.config import PaddleXConfig
from mlcls.paddlex.main import result_path


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
        strict=config.CheckDataset.strict,
    )
    report.log.print(where_all=str(result_path(config)))
    problems = report.log.errors + report.log.warnings
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
