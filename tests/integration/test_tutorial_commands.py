"""Section IV of PaddleX's tutorial of this module: its commands in order, on a generated dataset, and their files."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from mlcls.paddle.inference_yml import read_inference_yml
from mlcls.paddle.model import PaddleXModel
from support.dataset_samples import COLORS, coco_document, write_coco, write_colored_dataset
from support.processes import ROOT

pytestmark = pytest.mark.slow

CONFIG = ROOT / "configs/PP-LCNet_x1_0_ML.yaml"
DATASET = "./dataset/mlcls_nus_examples"
COCO_DATASET = "./dataset/det_coco_examples"
SIZE = 64
THRESHOLD = 0.1
# Makes the training a matter of seconds; the export gets the size and the threshold too.
INPUT = (f"Train.image_size={SIZE}", f"Train.threshold={THRESHOLD}")
TINY = (
    *INPUT, "Train.batch_size=8", "Train.pretrain_weight_path=False", "Train.num_workers=1",
    # after fewer steps the scores of two images differ by rounding only, which decides the order that mAP depends on
    "Train.epochs_iters=10", "Train.learning_rate=0.001",
)  # fmt: skip
CATEGORIES = {1: "person", 18: "dog", 44: "dining table", 90: "toothbrush"}
TRAIN_IMAGES = {number: [1, 44] if number % 2 else [18, 90] for number in range(1, 21)}
VAL_IMAGES = {number: [1, 18, 44, 90] for number in range(21, 25)}


@dataclasses.dataclass
class Tutorial:
    """The folder that the reader of the tutorial is in, and what the commands said."""

    folder: Path
    printed: dict[str, str] = dataclasses.field(default_factory=dict)
    results: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    def run(self, step: str, *overrides: str) -> None:
        """Runs `main.py` and keeps what the next run of the mode replaces: the result file's content, and pictures."""
        options = [text for override in overrides for text in ("-o", override)]
        command = [sys.executable, str(ROOT / "scripts/main.py"), "-c", str(CONFIG), *options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=120)
        assert process.returncode == 0, f"{step}: {process.stderr}"
        self.printed[step] = process.stdout
        mode = overrides[0].removeprefix("Global.mode=")
        self.results[step] = self.read_json(f"output/{mode}_result.json")
        if mode == "check_dataset":
            shutil.copytree(self.folder / "output/check_dataset", self.folder / step / "check_dataset")

    def read_json(self, path: str) -> Any:
        return json.loads((self.folder / path).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory: pytest.TempPathFactory) -> Tutorial:
    """All commands of section IV, in order, with `export` before `predict`."""
    tutorial = Tutorial(tmp_path_factory.mktemp("tutorial"))
    write_colored_dataset(tutorial.folder / DATASET, train=24, val=8, size=SIZE)
    write_coco(
        tutorial.folder / COCO_DATASET,
        {
            "instance_train.json": coco_document(TRAIN_IMAGES, CATEGORIES),
            "instance_val.json": coco_document(VAL_IMAGES, CATEGORIES),
        },
    )
    shutil.copy(tutorial.folder / DATASET / "images/030.png", tutorial.folder / "multilabel_classification_005.png")
    check, data, coco = (
        "Global.mode=check_dataset",
        f"Global.dataset_dir={DATASET}",
        f"Global.dataset_dir={COCO_DATASET}",
    )
    tutorial.run("check", check, data)
    convert = ("CheckDataset.convert.enable=True", "CheckDataset.convert.src_dataset_type=COCO")
    tutorial.run("convert", check, coco, *convert)
    split = ("enable=True", "train_percent=90", "val_percent=10")
    tutorial.run("split", check, coco, *(f"CheckDataset.split.{option}" for option in split))
    tutorial.run("train", "Global.mode=train", data, *TINY)
    weights = "output/best_model/best_model.pdparams"
    tutorial.run("evaluate", "Global.mode=evaluate", data, *INPUT)
    tutorial.run("export", "Global.mode=export", data, f"Export.weight_path={weights}", *INPUT)
    image = "Predict.input=multilabel_classification_005.png"
    tutorial.run("predict", "Global.mode=predict", "Predict.model_dir=./output/best_model/inference", image)
    return tutorial


def test_check_convert_and_split(tutorial: Tutorial) -> None:
    assert tutorial.printed["check"] == "Check dataset passed !\n"
    assert tutorial.printed["convert"].startswith("Convert dataset successfully !\n")
    assert tutorial.printed["split"].startswith("Split dataset successfully !\n")
    counts = {
        step: [tutorial.results[step]["attributes"][name] for name in ("num_classes", "train_samples", "val_samples")]
        for step in ("check", "convert", "split")
    }
    assert (counts["check"], counts["convert"]) == ([3, 24, 8], [4, 20, 4])
    result = tutorial.results["check"]
    assert (result["done_flag"], result["check_pass"], result["dataset_type"]) == (True, True, "MLClsDataset")
    samples = [*result["attributes"]["train_sample_paths"], *result["attributes"]["val_sample_paths"]]
    assert len(samples) == 10 + 8
    for picture in [*samples, result["analysis"]["histogram"]]:
        with Image.open(tutorial.folder / "check" / picture) as image:
            image.load()

    folder = tutorial.folder / COCO_DATASET
    assert (folder / "label.txt").read_text() == "0 person\n1 dog\n2 dining table\n3 toothbrush\n"
    before, after = (
        [(folder / f"{part}.txt{suffix}").read_text().splitlines() for part in ("train", "val")]
        for suffix in (".bak", "")
    )
    assert before[0][:2] == ["images/001.png\t1,0,1,0", "images/002.png\t0,1,0,1"]
    assert sorted(before[0] + before[1]) == sorted(after[0] + after[1])
    assert counts["split"] == [4, len(after[0]), len(after[1])]
    assert len(after[1]) in (2, 3)  # 10% of 24, with every label


def test_train_and_evaluate(tutorial: Tutorial) -> None:
    """The best weights' figures are those of the training."""
    trained, evaluated, output = tutorial.results["train"], tutorial.results["evaluate"], tutorial.folder / "output"
    assert (trained["done_flag"], trained["model_name"]) == (True, "PP-LCNet_x1_0_ML")
    assert yaml.safe_load((output / trained["config"]).read_text())["Train"]["image_size"] == SIZE
    assert "24 images to train on, 8 to evaluate on, 3 labels" in (output / trained["train_log"]).read_text()
    assert (evaluated["done_flag"], evaluated["weight_path"]) == (True, "output/best_model/best_model.pdparams")
    assert (evaluated["samples_expected"], evaluated["samples_read"]) == (8, 8)
    figures = [result["metrics"]["MultiLabelMAP"] for result in (trained, evaluated)]
    assert figures[0] == pytest.approx(figures[1], abs=1e-6)
    assert len((output / "evaluate/per_class.csv").read_text().splitlines()) == 1 + len(COLORS)


def test_export(tutorial: Tutorial) -> None:
    """The model is in `output` itself, as PaddleX has it, and is that of the training."""
    result, output = tutorial.results["export"], tutorial.folder / "output"
    assert result == {
        "done_flag": True,
        "model_name": "PP-LCNet_x1_0_ML",
        "inference_config": "inference.yml",
        "pdmodel": "inference.json",
        "pdiparams": "inference.pdiparams",
        "num_classes": 3,
        "label_source": str(output / "label_dict.txt"),
    }
    exported = read_inference_yml(output / "inference.yml")
    assert (exported.labels, exported.thresholds) == (tuple(COLORS), (THRESHOLD,) * 3)
    assert (exported.transform.height, exported.transform.width) == (SIZE, SIZE)
    PaddleXModel.open(output)
    of_training = output / "best_model/inference"
    for name in (result["pdiparams"], result["inference_config"]):
        assert (output / name).read_bytes() == (of_training / name).read_bytes()


def test_predict(tutorial: Tutorial) -> None:
    result = tutorial.results["predict"]
    (labels,) = result["results"]
    assert result["done_flag"] is True
    assert (labels["input_path"], labels["page_index"]) == ("multilabel_classification_005.png", None)
    assert len(labels["class_ids"]) == len(labels["scores"]) == len(labels["label_names"]) > 0
    assert labels["label_names"] == [list(COLORS)[class_id] for class_id in labels["class_ids"]]
    files = {name: labels.pop(name) for name in ("json_file", "img_file")}
    assert files == {
        "json_file": "multilabel_classification_005_res.json",
        "img_file": "multilabel_classification_005_res.png",
    }
    assert tutorial.printed["predict"] == f"{ {'res': labels} }\n"
    assert tutorial.read_json(f"output/{files['json_file']}") == labels
    with Image.open(tutorial.folder / "output" / files["img_file"]) as drawn:
        assert drawn.height > SIZE


def test_paddlex_labels_alike(tutorial: Tutorial, ask_paddlex: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """PaddleX's own predictor on the exported model."""
    images, model = tmp_path / "images", tmp_path / "exported"
    shutil.copytree(tutorial.folder / DATASET / "images", images)
    options = ("Predict.model_dir=output", f"Predict.input={images}", "Predict.batch_size=8")
    tutorial.run("predict folder", "Global.mode=predict", *options)
    model.mkdir()
    for name in ("inference.json", "inference.pdiparams", "inference.yml"):
        shutil.copy(tutorial.folder / "output" / name, model)
    theirs = ask_paddlex("predict", images, model)["exported"]
    ours = {Path(labels["input_path"]).name: labels for labels in tutorial.results["predict folder"]["results"]}
    assert ours.keys() == theirs.keys()
    for name, labels in ours.items():
        expected = theirs[name]["result"]
        assert labels["class_ids"] == expected["class_ids"], name
        assert labels["label_names"] == expected["label_names"], name
        np.testing.assert_allclose(labels["scores"], expected["scores"], rtol=0, atol=1e-4, err_msg=name)
