"""PaddleX's own checker accepts what mlcls accepts, converts and splits, and finds the same in it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib import font_manager

from mlcls import cli
from mlcls.paddlex.config import read_config
from support.dataset_samples import append, coco_document, write_coco, write_dataset, write_random_dataset
from support.processes import ROOT

CONFIG = ROOT / "configs/PP-LCNet_x1_0_ML.yaml"
COCO = {1: "person", 18: "dog", 44: "dining table", 90: "toothbrush"}
TRAIN = {3: [18], 1: [1, 18, 44], 2: [], 12: [90, 1], 30: [44], 31: [1], 32: [18, 90]}
VAL = {7: [1], 9: [90, 18, 44]}
DEFECTS = {"leaked-picture", "leaked-path", "duplicate-path", "absolute-path"}
SPLIT = ["CheckDataset.split.enable=True", "CheckDataset.split.train_percent=80", "CheckDataset.split.val_percent=20"]
CONVERT = ["CheckDataset.convert.enable=True", "CheckDataset.convert.src_dataset_type=COCO"]

VARIANTS = {"plain": [], "split": SPLIT, "converted": CONVERT, "both": [*CONVERT, *SPLIT], "defects": []}


def write_defective_dataset(root: Path) -> None:
    write_dataset(root)
    shutil.copy(root / "images/002.png", root / "images/copy.png")
    append(root / "train.txt", "images/000.png\t1,0,0,0\n")
    append(root / "val.txt", f"images/copy.png\t0,0,1,1\nimages/001.png\t0,1,0,0\n{root}/images/006.png\t1,1,0,0\n")


def write_coco_dataset(root: Path) -> Path:
    return write_coco(
        root, {"instance_train.json": coco_document(TRAIN, COCO), "instance_val.json": coco_document(VAL, COCO)}
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, ask_paddlex: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """What mlcls and then PaddleX say of several datasets, and PaddleX of its own conversion."""
    folder = tmp_path_factory.mktemp("datasets")
    write_dataset(folder / "plain")
    write_random_dataset(folder / "split", 60, 9, 3, (24, 32))
    write_coco_dataset(folder / "converted")
    write_coco_dataset(folder / "both")
    write_defective_dataset(folder / "defects")
    ours = {}
    for name, options in VARIANTS.items():
        overrides = [f"Global.dataset_dir={folder / name}", f"Global.output={folder / 'mlcls' / name}", *options]
        assert cli.main(["paddlex", "-c", str(CONFIG), *(text for o in overrides for text in ("-o", o))]) == 0
        path = folder / "mlcls" / name / "check_dataset_result.json"
        ours[name] = json.loads(path.read_text(encoding="utf-8"))
    write_coco_dataset(folder / "by_paddlex")

    # PaddleX downloads this font for its pictures; any will do
    cache = folder / "cache"
    (cache / "fonts").mkdir(parents=True)
    shutil.copy(font_manager.findfont("DejaVu Sans"), cache / "fonts/PingFang-SC-Regular.ttf")
    datasets = [folder / name for name in (*ours, "by_paddlex")]
    theirs = ask_paddlex("check", CONFIG, folder / "paddlex", *datasets, PADDLE_PDX_CACHE_HOME=str(cache))
    return {"mlcls": ours, "PaddleX": theirs, "folder": folder}


@pytest.mark.parametrize("name", ["plain", "split", "converted", "both"])
def test_same_result(results: dict[str, Any], name: str) -> None:
    ours, theirs = dict(results["mlcls"][name]), results["PaddleX"][name]
    assert theirs.get("check_pass") is True, theirs
    ours.pop("problems", None)  # a label without samples, which PaddleX does not look for
    assert ours.pop("done_flag") is True
    assert ours == theirs


def test_paddlex_accepts_what_is_a_warning_here(results: dict[str, Any]) -> None:
    ours, theirs = results["mlcls"]["defects"], results["PaddleX"]["defects"]
    assert theirs.get("check_pass") is ours["check_pass"] is True, theirs
    for name in ("num_classes", "train_samples", "val_samples"):
        assert ours["attributes"][name] == theirs["attributes"][name]
    assert {problem["kind"] for problem in ours["problems"]} >= DEFECTS
    assert {problem["severity"] for problem in ours["problems"]} == {"warning"}


@pytest.mark.parametrize("name", ["plain", "split"])
def test_same_pictures(results: dict[str, Any], name: str) -> None:
    """The sample pictures have the same names, and a histogram is there."""
    written = [
        sorted(path.relative_to(base).as_posix() for path in base.rglob("*.png"))
        for base in (results["folder"] / tool / name / "check_dataset" for tool in ("mlcls", "paddlex"))
    ]
    assert written[0] == written[1]
    assert "histogram.png" in written[0]


def test_paddlex_refuses_its_own_conversion(results: dict[str, Any]) -> None:
    """Its vectors are those of mlcls; its `label.txt` has COCO's ids, which its check refuses."""
    folder = results["folder"]
    assert "Ensure that the index starts from 0" in results["PaddleX"]["by_paddlex"]["error"]
    for file in ("train.txt", "val.txt"):
        assert (folder / "by_paddlex" / file).read_text() == (folder / "converted" / file).read_text()
    assert (folder / "by_paddlex/label.txt").read_text() == "1 person\n18 dog\n44 dining table\n90 toothbrush\n"


def test_paddlex_configurations_are_read(paddlex_python: Path) -> None:
    """PaddleX's own files, as its package has them."""
    found = sorted(paddlex_python.parents[1].glob("lib/python*/site-packages/paddlex/configs/modules/*/*_ML.yaml"))
    found = [path for path in found if path.parent.name == "image_multilabel_classification"]
    assert len(found) == 6
    for path in found:
        assert read_config(path).Global.model == path.stem
