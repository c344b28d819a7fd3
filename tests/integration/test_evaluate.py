"""Evaluations: one annotation file on Paddle, ONNX and a served ensemble; trained weights by a configuration."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlcls.dataset.annotations import format_annotations
from mlcls.dataset.labels import format_labels
from mlcls.engines.runner_selection import open_runner
from mlcls.errors import DatasetError, ServedImageError, ServerError
from mlcls.evaluation.evaluate import Evaluation, evaluate
from mlcls.repository.models import ModelVersion, Repository
from mlcls.server.process import TritonServer
from support.image_samples import write_photos
from support.processes import run_mlcls
from support.served_models import SMALL_LABELS, SmallModels

NAME = "small_with_sigmoid"
MODEL = "PP-LCNet_x1_0_ML"
PHOTOS = 45


@pytest.fixture(scope="module")
def val_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An annotation file of more photos than a batch has; no photo has the last label."""
    folder = tmp_path_factory.mktemp("annotated")
    photos = write_photos(folder, PHOTOS, 8, ("png", "jpg", "webp"))
    targets = np.random.default_rng(11).random((PHOTOS, len(SMALL_LABELS))) < 0.5
    targets[:, -1] = False
    (folder / "val.txt").write_text(format_annotations([photo.name for photo in photos], targets))
    (folder / "label.txt").write_text(format_labels(SMALL_LABELS), encoding="utf-8")
    return folder / "val.txt"


@pytest.fixture(scope="module")
def runners(small_models: SmallModels, small_server: TritonServer) -> dict[str, str]:
    return {
        "paddle": f"paddle={small_models.with_sigmoid}",
        "onnxruntime": "onnxruntime",
        "openvino": "openvino",
        "served": f"served={small_server.grpc_url}",
    }


@pytest.fixture(scope="module")
def model(small_models: SmallModels) -> ModelVersion:
    return Repository(small_models.repository).active(NAME)


def evaluate_on(text: str, model: ModelVersion, val_file: Path) -> Evaluation:
    with contextlib.ExitStack() as stack:
        runner = open_runner(text, model, stack)
        # in the middle of the scores, so that there are decisions of both kinds
        return evaluate(runner, val_file, [0.5] * len(SMALL_LABELS))


def test_the_figures_of_all_runners_are_equal(runners: dict[str, str], model: ModelVersion, val_file: Path) -> None:
    evaluations = {kind: evaluate_on(text, model, val_file) for kind, text in runners.items()}
    reference = evaluations["paddle"]
    spread = np.ptp(reference.scores, axis=0)
    assert spread.max() > 0.05, "answers that were exchanged would pass"
    for kind, evaluation in evaluations.items():
        assert evaluation.runner == kind
        assert (evaluation.samples_expected, evaluation.samples_read) == (PHOTOS, PHOTOS)
        np.testing.assert_allclose(evaluation.scores, reference.scores, atol=1e-4)
        assert evaluation.metrics.overall == pytest.approx(reference.metrics.overall, abs=1e-4)
        assert evaluation.metrics.not_counted == (SMALL_LABELS[-1],)


def test_command(
    runners: dict[str, str], small_models: SmallModels, model: ModelVersion, val_file: Path, tmp_path: Path
) -> None:
    done = run_mlcls(
        "evaluate", NAME, "--annotations", val_file, "--runner", runners["served"], "--output", tmp_path / "report",
        "--repository", small_models.repository,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == f"served: {PHOTOS} of {PHOTOS} samples read, 4 of 5 labels counted"
    result = json.loads((tmp_path / "report/evaluate_result.json").read_text())
    assert (result["done_flag"], result["samples_expected"], result["samples_read"]) == (True, PHOTOS, PHOTOS)
    expected = evaluate_on(runners["paddle"], model, val_file).metrics.overall
    assert result["metrics"]["MultiLabelMAP"] == pytest.approx(expected["MultiLabelMAP"], abs=1e-4)
    assert f"{result['metrics']['MultiLabelMAP']:.4f}" in done.stdout.splitlines()[1]
    assert [row["label"] for row in result["per_class"]] == list(SMALL_LABELS)
    assert {row["threshold"] for row in result["per_class"]} == set(model.spec.thresholds)
    for picture in result["pictures"].values():
        Image.open(tmp_path / "report" / picture).verify()


def test_unreadable_image(runners: dict[str, str], model: ModelVersion, val_file: Path, tmp_path: Path) -> None:
    """In a batch, and as a request of its own, which the server refuses since it can answer nothing of it."""
    broken = shutil.copytree(val_file.parent, tmp_path / "dataset") / "val.txt"
    (broken.parent / "10.jpg").write_bytes(b"no image")
    with pytest.raises(ServedImageError, match=r"dataset/10\.jpg: .*image: expected"):
        evaluate_on(runners["served"], model, broken)
    (broken.parent / "00.png").write_bytes(b"no image")
    broken.write_text(broken.read_text().splitlines()[0] + "\n")
    with pytest.raises(ServerError, match=r"dataset/00\.png: small_with_sigmoid at .*image: expected"):
        evaluate_on(runners["served"], model, broken)


def test_labels_in_another_order(model: ModelVersion, val_file: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(val_file.parent, tmp_path / "dataset") / "val.txt"
    (changed.parent / "label.txt").write_text("0 cat\n1 no\n2 dog\n3 a\n4 b\n")
    with pytest.raises(DatasetError, match="got 'no' with class id 1, which is 'dog' to the model"):
        evaluate_on("onnxruntime", model, changed)
    (changed.parent / "label.txt").write_text("0 cat\n")
    with pytest.raises(DatasetError, match="expected the model's 5 labels, got 1"):
        evaluate_on("onnxruntime", model, changed)
