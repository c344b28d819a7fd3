"""Modes `export` and `predict` of `mlcls paddlex` beyond the tutorial: what goes wrong, and other inputs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlcls import cli
from mlcls.dataset.labels import format_labels
from mlcls.model.catalog import coco_labels
from mlcls.paddle.inference_yml import read_inference_yml
from mlcls.paddle.runtime import import_paddle
from mlcls.training.architectures import build_network
from support.dataset_samples import write_colored_dataset
from support.processes import ROOT
from support.served_models import SMALL_LABELS, SmallModels

MODEL = "PP-LCNet_x1_0_ML"
OFFICIAL_NAME = f"{MODEL}_pretrained.pdparams"


def run(folder: Path, mode: str, *overrides: str) -> int:
    """Runs a mode with `folder/output`, and a dataset that is there only where a test puts one there."""
    options = [f"Global.mode={mode}", f"Global.output={folder / 'output'}", f"Global.dataset_dir={folder / 'dataset'}"]
    texts = [text for option in (*options, *overrides) for text in ("-o", option)]
    return cli.main(["paddlex", "-c", str(ROOT / f"configs/{MODEL}.yaml"), *texts])


def result_of(folder: Path, mode: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((folder / f"output/{mode}_result.json").read_text(encoding="utf-8"))
    return result


# --- train


def test_what_a_failed_training_left_stays_in_its_result(tmp_path: Path) -> None:
    dataset = write_colored_dataset(tmp_path / "dataset", train=4, val=2)
    tiny = ("batch_size=4", "image_size=32", "pretrain_weight_path=False", "num_workers=1", "backbone_scale=0.25")
    options = [f"Train.{option}" for option in tiny]
    assert run(tmp_path, "train", *options, "Train.epochs_iters=1") == 0
    # an image that breaks after the check, which a resumed training leaves out
    path = dataset / "images/005.png"
    path.write_bytes(path.read_bytes()[:100])
    latest = f"Train.resume_path={tmp_path / 'output/latest'}"
    assert run(tmp_path, "train", *options, "Train.epochs_iters=2", latest) == 1
    result = result_of(tmp_path, "train")
    assert (result["done_flag"], result["err_type"]) == (False, "DatasetError")
    assert "images/005.png: expected an image" in result["err_msg"]
    assert (result["model_name"], result["train_log"]) == (MODEL, "train.log")
    assert (tmp_path / "output" / result["models"]["last_1"]["pdparams"]).is_file()


def test_a_training_that_is_refused_says_why_in_its_result(tmp_path: Path) -> None:
    dataset = write_colored_dataset(tmp_path / "dataset", train=4, val=2)
    (dataset / "images/005.png").write_bytes(b"no image")
    assert run(tmp_path, "train", "Train.pretrain_weight_path=False") == 1
    result = result_of(tmp_path, "train")
    assert (result["done_flag"], result["err_type"]) == (False, "DatasetError")
    problem = result["problems"][0]
    assert (problem["kind"], problem["file"], problem["line"]) == ("broken-image", "val.txt", 2)


# --- export


@pytest.fixture(scope="module")
def three_labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a network with three labels, alone in their folder."""
    paddle = import_paddle("train")
    path = tmp_path_factory.mktemp("weights") / "of" / "mine.pdparams"
    path.parent.mkdir()
    paddle.save(build_network(MODEL, 3).state_dict(), str(path))
    return path


def write_labels(folder: Path, *labels: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "label.txt").write_text(format_labels(labels), encoding="utf-8")


def test_labels_of_the_dataset(tmp_path: Path, three_labels: Path) -> None:
    """What else is in the output folder stays."""
    write_labels(tmp_path / "dataset", "a", "b", "c")
    (tmp_path / "output").mkdir()
    (tmp_path / "output/train.log").write_text("kept")
    assert run(tmp_path, "export", f"Export.weight_path={three_labels}", "Train.image_size=64") == 0
    names = sorted(path.name for path in (tmp_path / "output").iterdir())
    assert names == ["export_result.json", "inference.json", "inference.pdiparams", "inference.yml", "train.log"]
    exported = read_inference_yml(tmp_path / "output/inference.yml")
    assert (exported.labels, exported.thresholds) == (("a", "b", "c"), (0.5, 0.5, 0.5))
    assert result_of(tmp_path, "export")["label_source"] == str(tmp_path / "dataset/label.txt")


def test_no_labels_and_another_number_of_labels(
    tmp_path: Path, three_labels: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path, words in ((three_labels, "label.txt in Global.dataset_dir"), ("none.pdparams", "which does not exist")):
        assert run(tmp_path, "export", f"Export.weight_path={path}") == 1
        assert words in capsys.readouterr().err
    write_labels(tmp_path / "dataset", "a", "b")
    assert run(tmp_path, "export", f"Export.weight_path={three_labels}") == 1
    error = capsys.readouterr().err
    assert "for 2 labels. Use the label list that was trained." in error
    assert f"The 2 labels were taken from {tmp_path / 'dataset/label.txt'}." in error
    result = result_of(tmp_path, "export")
    assert (result["done_flag"], result["err_type"]) == (False, "ModelFormatError")
    assert [path.name for path in (tmp_path / "output").iterdir()] == ["export_result.json"]


def test_official_weights_are_of_coco(tmp_path: Path, three_labels: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By their name; a file of that name with another number of labels is refused."""
    weights = tmp_path / OFFICIAL_NAME
    shutil.copy(three_labels, weights)
    assert run(tmp_path, "export", f"Export.weight_path={weights}") == 1
    assert "The 80 labels were taken from COCO." in capsys.readouterr().err

    paddle = import_paddle("train")
    paddle.save(build_network(MODEL, 80, query_num=4).state_dict(), str(weights))
    assert run(tmp_path, "export", f"Export.weight_path={weights}", "Train.image_size=64") == 0
    assert read_inference_yml(tmp_path / "output/inference.yml").labels == coco_labels()

    write_labels(tmp_path / "dataset", "a", "b", "c")
    assert run(tmp_path, "export", f"Export.weight_path={weights}") == 1
    assert "(3 labels), got official ones, whose labels are COCO's 80." in capsys.readouterr().err


def test_weights_of_a_training(tmp_path: Path, three_labels: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its labels come before the dataset's; another input size than the training's is told."""
    shutil.copytree(three_labels.parent, tmp_path / "run/best_model")
    (tmp_path / "run/label_dict.txt").write_text(format_labels(["x", "y", "z"]))
    (tmp_path / "run/config.yaml").write_text("Train: {image_size: 96}")
    write_labels(tmp_path / "dataset", "a", "b")
    weights = f"Export.weight_path={tmp_path / 'run/best_model/mine.pdparams'}"
    assert run(tmp_path, "export", weights, "Train.num_classes=2") == 1
    assert "Train.num_classes: expected 3, as many as" in capsys.readouterr().err
    assert run(tmp_path, "export", weights, "Train.image_size=64") == 0
    assert "Note: Train.image_size is 64, the training's was 96" in capsys.readouterr().err
    assert read_inference_yml(tmp_path / "output/inference.yml").labels == ("x", "y", "z")


# --- predict


@pytest.fixture
def images(tmp_path: Path, sample_images: list[Path]) -> Path:
    """Photos, one name twice, a file with two pages, and a file that is no image."""
    folder = tmp_path / "images"
    (folder / "more").mkdir(parents=True)
    photo = next(path for path in sample_images if path.suffix == ".jpg")
    shutil.copy(photo, folder / "photo.jpg")
    with Image.open(photo) as image:
        image.rotate(90).save(folder / "more/photo.png")
        image.save(folder / "pages.tif", save_all=True, append_images=[image.rotate(180)])
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder


def test_a_folder_with_a_broken_image(
    tmp_path: Path, images: Path, small_models: SmallModels, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "predict", f"Predict.model_dir={small_models.with_sigmoid}", f"Predict.input={images}") == 1
    out, err = capsys.readouterr()
    text = f"{images}: expected images that can be labeled and saved, got 1 that cannot, of 5."
    reason = f"{images / 'broken.jpg'}: image: expected the bytes of one"
    assert err.splitlines()[0].startswith(f"error: {reason}")
    assert err.splitlines()[1:] == [f"mlcls paddlex: {text}"]
    result = result_of(tmp_path, "predict")
    assert (result["done_flag"], result["err_type"], result["err_msg"]) == (False, "PredictionError", text)
    (failure,) = result["failures"]
    assert failure["input_path"] == str(images / "broken.jpg")
    assert failure["error"].startswith(reason)
    assert len(out.splitlines()) == len(result["results"]) == 4
    saved = {(labels["json_file"], labels["img_file"], labels["page_index"]) for labels in result["results"]}
    assert saved == {
        ("photo_res_2.json", "photo_res.jpg", None),
        ("photo_res.json", "photo_res.png", None),
        ("pages_0_res.json", "pages_0_res.tif", 0),
        ("pages_1_res.json", "pages_1_res.tif", 1),
    }
    for labels in result["results"]:
        document = json.loads((tmp_path / "output" / labels["json_file"]).read_text())
        assert document.items() <= labels.items()
        assert (tmp_path / "output" / labels["img_file"]).is_file()


def test_logits_and_batches(tmp_path: Path, images: Path, small_models: SmallModels) -> None:
    """A model that ends in logits has the labels of the one that ends in a sigmoid, in batches of any size."""
    (images / "broken.jpg").unlink()
    answers = []
    for source, batch_size in ((small_models.with_sigmoid, 1), (small_models.with_logits, 3)):
        model = tmp_path / source.name
        shutil.copytree(source, model)
        config = model / "inference.yml"
        config.write_text(config.read_text().replace("threshold: 0.5", "threshold: 0.1"))
        options = (f"Predict.model_dir={model}", f"Predict.input={images}", f"Predict.batch_size={batch_size}")
        assert run(tmp_path, "predict", *options) == 0
        answers.append(result_of(tmp_path, "predict")["results"])
    for one, other in zip(*answers, strict=True):
        assert one["label_names"] == other["label_names"]
        assert set(one["label_names"]) <= set(SMALL_LABELS)
        np.testing.assert_allclose(one.pop("scores"), other.pop("scores"), rtol=0, atol=1e-4)
        assert one == other
    assert all(labels["label_names"] for labels in answers[0])


def test_nothing_to_predict(tmp_path: Path, small_models: SmallModels, capsys: pytest.CaptureFixture[str]) -> None:
    for override, words in {
        "Predict.input=none.jpg": "error: Expected an image file or a folder at 'none.jpg', which does not exist",
        "Predict.model_dir=none": "Expected a folder, a .tar archive",
        "Global.model=ResNet50_ML": f"expected a model ResNet50_ML, as Global.model says, got {MODEL}",
    }.items():
        assert run(tmp_path, "predict", f"Predict.model_dir={small_models.with_sigmoid}", override) == 1
        assert words in capsys.readouterr().err
        assert result_of(tmp_path, "predict")["done_flag"] is False
