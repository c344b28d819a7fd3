"""What an evaluation writes, with few labels and with many."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlcls.evaluation.evaluate import Evaluation
from mlcls.evaluation.metrics import LABEL_COLUMNS, compute_metrics
from mlcls.evaluation.report import format_table, write_report


def make_evaluation(num_labels: int, images: int = 120) -> Evaluation:
    generator = np.random.default_rng(num_labels)
    targets = generator.random((images, num_labels)) < 0.2
    targets[:, -1] = False
    noise = np.linspace(0.2, 1, num_labels)
    scores = np.clip(targets * 0.4 + 0.2 + noise * generator.normal(0, 0.25, targets.shape), 0, 1).astype(np.float32)
    labels = [f"$label$ {index}" for index in range(num_labels - 1)] + ["a label with a name far too long for a row"]
    metrics = compute_metrics(scores, targets, labels, [0.5] * num_labels)
    return Evaluation("onnxruntime", Path("val.txt"), scores, targets, metrics)


@pytest.mark.parametrize("num_labels", [2, 5, 90])
def test_report(tmp_path: Path, num_labels: int) -> None:
    evaluation = make_evaluation(num_labels)
    result = write_report(evaluation, tmp_path, "title with a $")
    assert (result["samples_expected"], result["samples_read"]) == (120, 120)
    assert result["metrics"] == evaluation.metrics.overall
    assert result["labels_not_counted"] == ["a label with a name far too long for a row"]
    for name, path in result["pictures"].items():
        with Image.open(tmp_path / path) as picture:
            assert (picture.format, picture.width > 600, picture.height > 150) == ("PNG", True, True), name
            assert len(picture.convert("RGB").getcolors(1 << 24) or ()) > 10
    rows = list(csv.DictReader(io.StringIO((tmp_path / result["per_class_csv"]).read_text())))
    assert len(rows) == num_labels
    assert tuple(rows[0]) == LABEL_COLUMNS
    assert float(rows[0]["average_precision"]) == evaluation.metrics.per_class[0].average_precision
    assert rows[-1]["average_precision"] == ""
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == [
        "per_class.csv", "per_class.png", "precision_recall.png",
    ]  # fmt: skip


def test_table() -> None:
    evaluation = make_evaluation(5)
    lines = format_table(evaluation).splitlines()
    assert lines[0] == "onnxruntime: 120 of 120 samples read, 4 of 5 labels counted"
    assert lines[1].split() == ["mAP", f"{evaluation.metrics.overall['MultiLabelMAP']:.4f}"]
    assert lines[-1] == "  no image has: a label with a name far too long for a row"
    worst = min(evaluation.metrics.counted, key=lambda row: row.average_precision)
    assert lines[10].startswith(f"  {worst.label} ")
