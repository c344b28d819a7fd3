"""Write an evaluation: two pictures, a table of the labels, and its part of the result file."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any, Final

from mlcls.base.files import write_bytes, write_text
from mlcls.base.text import csv_cell
from mlcls.evaluation.evaluate import Evaluation
from mlcls.evaluation.metrics import LABEL_COLUMNS, Metrics

# Folder of the pictures and the table, in the output folder.
REPORT_FOLDER: Final = "evaluate"
RESULT_FILE: Final = "evaluate_result.json"
_WORST: Final = 5


def write_report(evaluation: Evaluation, output: Path, title: str) -> dict[str, Any]:
    """Write the pictures, that of the curves with a title, and the table into the output folder.

    Return the content of the result file except `done_flag`; `MultiLabelMAP` is where PaddleX has it.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    from mlcls.evaluation.pictures import draw_per_class, draw_precision_recall

    metrics = evaluation.metrics
    pictures = {"precision_recall": draw_precision_recall(evaluation, title), "per_class": draw_per_class(metrics)}
    for name, content in pictures.items():
        write_bytes(output / REPORT_FOLDER / f"{name}.png", content)
    write_text(output / REPORT_FOLDER / "per_class.csv", _to_csv(metrics))
    return {
        "metrics": metrics.overall,
        "samples_expected": evaluation.samples_expected,
        "samples_read": evaluation.samples_read,
        "runner": evaluation.runner,
        "annotations": str(evaluation.annotations),
        "labels_not_counted": list(metrics.not_counted),
        "per_class": [row.to_dict() for row in metrics.per_class],
        "per_class_csv": f"{REPORT_FOLDER}/per_class.csv",
        "pictures": {name: f"{REPORT_FOLDER}/{name}.png" for name in pictures},
    }


def format_table(evaluation: Evaluation) -> str:
    """Return the metrics as text, with the worst labels."""
    metrics = evaluation.metrics
    lines = [f"{evaluation.runner}: {evaluation.samples_read} of {evaluation.samples_expected} samples read"]
    lines[0] += f", {len(metrics.counted)} of {len(metrics.per_class)} labels counted"
    shown = {"MultiLabelMAP": "mAP", "MultiLabelMAP_11point": "mAP 11-point"}
    lines += [f"  {shown.get(name, name):14}{value:8.4f}" for name, value in metrics.overall.items()]
    lines.append(f"  {'worst labels':30}{'AP':>8}{'precision':>11}{'recall':>8}{'images':>8}")
    lines += [
        f"  {row.label[:28]:30}{row.average_precision:8.4f}{row.precision:11.4f}{row.recall:8.4f}{row.positives:8}"
        for row in sorted(metrics.counted, key=lambda row: row.average_precision)[:_WORST]
    ]
    if metrics.not_counted:
        more = f" and {len(metrics.not_counted) - _WORST} more" if len(metrics.not_counted) > _WORST else ""
        lines.append(f"  no image has: {', '.join(metrics.not_counted[:_WORST])}{more}")
    return "\n".join(lines)


def _to_csv(metrics: Metrics) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, LABEL_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: csv_cell(value) for name, value in row.to_dict().items()} for row in metrics.per_class)
    return buffer.getvalue()
