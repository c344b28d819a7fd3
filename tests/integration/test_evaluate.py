"""Evaluations: one annotation file on Paddle, ONNX and a served ensemble; trained weights by a configuration."""

from __future__ import annotations

import contextlib
import csv
import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from mlcls import cli
from mlcls.engines.runner_selection import open_runner
from mlcls.errors import DatasetError, ServedImageError, ServerError
from mlcls.evaluation.evaluate import Evaluation, evaluate
from mlcls.images.photos import photo_crops
from mlcls.repository.models import ModelVersion, Repository
from mlcls.server.process import TritonServer
from mlcls.training.settings import TrainSettings
from mlcls.training.train import train_model
from support.dataset_samples import write_colored_dataset
from support.processes import ROOT, run_mlcls
from support.served_models import SMALL_LABELS, SmallModels

NAME = "small_with_sigmoid"
MODEL = "PP-LCNet_x1_0_ML"
PHOTOS = 45


@pytest.fixture(scope="module")
def val_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An annotation file of more photos than a batch has; no photo has the last label."""
    folder = tmp_path_factory.mktemp("annotated")
    generator = np.random.default_rng(11)
    lines = []
    for index, crop in enumerate(photo_crops(PHOTOS, seed=8)):
        name = f"{index:02}.{('png', 'jpg', 'webp')[index % 3]}"
        cv2.imwrite(str(folder / name), crop[:, :, ::-1])
        lines.append(f"{name}\t{','.join(map(str, [*generator.integers(0, 2, len(SMALL_LABELS) - 1), 0]))}\n")
    (folder / "val.txt").write_text("".join(lines))
    (folder / "label.txt").write_text("".join(f"{index} {label}\n" for index, label in enumerate(SMALL_LABELS)))
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


# --- runners


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


# --- mode evaluate


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainSettings:
    """A training just long enough for scores that tell the images apart."""
    folder = tmp_path_factory.mktemp("trained")
    settings = TrainSettings(
        MODEL,
        write_colored_dataset(folder / "dataset", train=10),
        output=folder / "output",
        epochs_iters=40,
        batch_size=10,
        eval_interval=40,
        image_size=(32, 32),
        threshold=0.4,
        cutout=False,
        rand_augment=False,
        num_workers=2,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        train_model(settings)
    return settings


def run_mode(settings: TrainSettings, output: Path, *overrides: str) -> tuple[int, dict[str, Any]]:
    options = [
        "Global.mode=evaluate",
        f"Global.dataset_dir={settings.dataset_dir}",
        f"Global.output={output}",
        f"Evaluate.weight_path={settings.output / 'best_model/best_model.pdparams'}",
        "Train.image_size=32",
        "Train.threshold=0.4",
        "Train.batch_size=4",
        *overrides,
    ]
    command = ["paddlex", "-c", str(ROOT / f"configs/{MODEL}.yaml"), *(x for option in options for x in ("-o", option))]
    status = cli.main(command)
    return status, json.loads((output / "evaluate_result.json").read_text())


def test_mode(trained: TrainSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The figure is the one that the training gave for the weights that it kept."""
    status, result = run_mode(trained, tmp_path)
    assert status == 0
    assert list(result)[:2] == ["done_flag", "metrics"]
    assert result["done_flag"] is True
    expected = json.loads((trained.output / "train_result.json").read_text())["metrics"]["MultiLabelMAP"]
    assert expected > 0.8
    assert result["metrics"]["MultiLabelMAP"] == pytest.approx(expected, abs=1e-4)
    assert (result["samples_expected"], result["samples_read"], result["runner"]) == (10, 10, "weights")
    assert [row["threshold"] for row in result["per_class"]] == [0.4] * 3
    for path in result["pictures"].values():
        Image.open(tmp_path / path).verify()
    rows = list(csv.DictReader((tmp_path / result["per_class_csv"]).read_text().splitlines()))
    assert [row["label"] for row in rows] == ["red", "green", "blue"]
    out = capsys.readouterr().out.splitlines()
    assert out[:3] == ["evaluated 4 images", "evaluated 8 images", "evaluated 10 images"]
    assert out[3] == "weights: 10 of 10 samples read, 3 of 3 labels counted"


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("Evaluate.weight_path=null", "Evaluate.weight_path: expected a .pdparams file or its URL, got none"),
        (
            "Evaluate.weight_path=none.pdparams",
            "Evaluate.weight_path: expected a .pdparams file or its URL, got 'none.pdparams', which does not exist",
        ),
        ("Train.image_size=64", "Train.image_size: expected (32, 32), the height and width that these weights were"),
        ("Train.num_classes=4", "expected 4 labels, as num_classes says, got 3"),
        ("Global.model=ResNet50_ML", "expected the"),
    ],
)
def test_mode_that_fails(
    trained: TrainSettings, tmp_path: Path, override: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, result = run_mode(trained, tmp_path, override)
    assert status == 1
    assert result["done_flag"] is False
    assert text in result["err_msg"]
    assert result["err_msg"] in capsys.readouterr().err


def test_mode_with_an_unreadable_image(trained: TrainSettings, tmp_path: Path) -> None:
    dataset = shutil.copytree(trained.dataset_dir, tmp_path / "dataset")
    path = dataset / (dataset / "val.txt").read_text().splitlines()[6].split("\t")[0]
    path.write_bytes(path.read_bytes()[:50])
    status, result = run_mode(trained, tmp_path, f"Global.dataset_dir={dataset}")
    assert (status, result["err_type"]) == (1, "DatasetError")
    assert str(path) in result["err_msg"]
