"""The command `mlcls evaluate`: measure a model on an annotated dataset, on any runner."""

from __future__ import annotations

import argparse
import contextlib
import json
from pathlib import Path
from typing import Final

from mlcls.commands.options import add_repository_option

NAME: Final = "evaluate"
SUMMARY: Final = "Measure a model on an annotated dataset, on any runner: mAP, F1, curves."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.epilog = (
        "A runner is KIND or KIND=WHERE: paddle=FOLDER, onnxruntime[=FILE], openvino[=FILE], openvino-bf16[=FILE], "
        "tensorrt[=FILE], tensorrt-rtx=FILE, served[=HOST:PORT]. For weights in training form, use mode evaluate of "
        "`mlcls paddlex`."
    )
    parser.add_argument("model", metavar="MODEL", help="name of an imported model")
    parser.add_argument(
        "--annotations", type=Path, required=True, metavar="FILE", help="annotation file of an MLClsDataset (val.txt)"
    )
    parser.add_argument(
        "--runner", default="onnxruntime", metavar="RUNNER", help="runner to measure (default: %(default)s)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("output"),
        metavar="DIR",
        help="folder for evaluate_result.json, the plots and the label table (default: %(default)s)",
    )
    add_repository_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Evaluate, write the report and print a table."""
    from mlcls.base.files import require_writable, write_text
    from mlcls.base.pictures import require_matplotlib
    from mlcls.engines.runner_selection import open_runner
    from mlcls.evaluation.evaluate import evaluate
    from mlcls.evaluation.report import RESULT_FILE, format_table, write_report
    from mlcls.repository.models import Repository

    require_matplotlib()  # fail now, not after an hour
    require_writable(arguments.output)
    version = Repository(arguments.repository).active(arguments.model)
    version.check()
    with contextlib.ExitStack() as stack:
        runner = open_runner(arguments.runner, version, stack)
        evaluation = evaluate(runner, arguments.annotations, version.spec.thresholds)
    title = f"{version.spec.name} ({evaluation.runner}), {arguments.annotations}"
    result = {"done_flag": True, **write_report(evaluation, arguments.output, title), "model": version.spec.name}
    write_text(arguments.output / RESULT_FILE, json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    print(format_table(evaluation))
    print(f"Written to {arguments.output / RESULT_FILE}")
    return 0
