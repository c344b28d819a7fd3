"""Configuration files: all six, overrides, and every way in which they can be wrong."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlcls.errors import ConfigError
from mlcls.model.catalog import OFFICIAL_MODELS
from mlcls.paddlex.config import TrainSection, read_config

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
CONFIG = CONFIGS / "PP-LCNet_x1_0_ML.yaml"


def test_there_is_one_for_each_model() -> None:
    assert sorted(path.stem for path in CONFIGS.iterdir()) == sorted(OFFICIAL_MODELS)


@pytest.mark.parametrize("name", OFFICIAL_MODELS)
def test_configuration_of_a_model(name: str) -> None:
    path = CONFIGS / f"{name}.yaml"
    config = read_config(path)
    assert config.Global.model == name
    assert config.Train.pretrain_weight_path == config.Export.weight_path == OFFICIAL_MODELS[name].pretrained_url
    written = yaml.safe_load(path.read_text(encoding="utf-8"))
    read = dataclasses.asdict(config)
    del read["CheckDataset"]["split"]["seed"]  # not PaddleX's
    for field in dataclasses.fields(TrainSection):
        if field.default is not dataclasses.MISSING:
            del read["Train"][field.name]  # nor these
    assert read == written
    assert f"-c configs/{name}.yaml" in path.read_text(encoding="utf-8").splitlines()[0]


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("Global.mode=train", "train"),
        ("Global.device=gpu:0,1", "gpu:0,1"),
        ("Global.dataset_dir=./a=b", "./a=b"),
        ('Global.output="2017"', "2017"),
        ("CheckDataset.convert.enable=no", False),
        ("CheckDataset.convert.src_dataset_type=COCO", "COCO"),
        ("CheckDataset.split.train_percent=90", 90),
        ("CheckDataset.split.seed=7", 7),
        ("Train.learning_rate=1e-4", 1e-4),
        ("Train.learning_rate=1", 1.0),
        ("Train.num_classes=5", 5),
        ("Train.image_size=64", 64),
        ("Train.amp=True", True),
        ("Train.num_classes=null", None),
        ("Train.pretrain_weight_path=None", None),
        ("Train.pretrain_weight_path=", None),
        ("Predict.kernel_option.run_mode=paddle", "paddle"),
    ],
)
def test_override(override: str, value: object) -> None:
    found: Any = read_config(CONFIG, [override])
    for name in override.partition("=")[0].split("."):
        found = getattr(found, name)
    assert found == value
    assert type(found) is type(value)


def test_last_override_holds() -> None:
    assert read_config(CONFIG, ["Train.batch_size=1", "Train.batch_size=2"]).Train.batch_size == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["Global.mod=train"], "Global.mod is unknown, expected model, mode, dataset_dir, device, output."),
        (["Globl.mode=train"], "Globl is unknown, expected Global, CheckDataset, Train, Evaluate, Export, Predict."),
        (
            ["CheckDataset.convert.src=COCO"],
            "CheckDataset.convert.src is unknown, expected enable, src_dataset_type.",
        ),
        (["Train.batch_size=many"], "Train.batch_size: expected an integer, got 'many'."),
        (["Train.batch_size=1.5"], "Train.batch_size: expected an integer, got 1.5."),
        (["Train.batch_size=True"], "Train.batch_size: expected an integer, got True."),
        (["Train.batch_size=null"], "Train.batch_size: expected an integer, got null."),
        (["Train.num_classes=[5]"], "Train.num_classes: expected an integer or null, got [5]."),
        (["Train.learning_rate=.nan"], "Train.learning_rate: expected a number, got nan."),
        (["Train.learning_rate=fast"], "Train.learning_rate: expected a number, got 'fast'."),
        (["CheckDataset.split.enable=1"], "CheckDataset.split.enable: expected true or false, got 1."),
        (["Global.output=2017"], "Global.output: expected text, got 2017 (put it in quotes to make it text)."),
        (["Global.output=''"], "Global.output: expected the path of a folder, got an empty string."),
        (["Global.model=ResNet50"], "Global.model: expected one of CLIP_vit_base_patch16_448_ML, "),
        (
            ["Train.batch_size=x", "Train.log_interval=y"],
            "Train.batch_size: expected an integer, got 'x'; Train.log_interval: expected an integer, got 'y'.",
        ),
        (
            ["CheckDataset.convert.enable=True"],
            "CheckDataset.convert.src_dataset_type: expected COCO if convert.enable is true, got null.",
        ),
        (
            ["CheckDataset.convert.enable=True", "CheckDataset.convert.src_dataset_type=LabelMe"],
            "CheckDataset.convert.src_dataset_type: expected COCO if convert.enable is true, got 'LabelMe'.",
        ),
        (
            [f"CheckDataset.split.{field}" for field in ("enable=True", "train_percent=80", "val_percent=10")],
            "CheckDataset.split: expected train_percent and val_percent that add up to 100, got 80 + 10 = 90.",
        ),
        (
            [f"CheckDataset.split.{field}" for field in ("enable=True", "train_percent=100", "val_percent=0")],
            "CheckDataset.split.train_percent: expected an integer between 0 and 100, got 100; CheckDataset.split.val_",
        ),
        (
            [f"CheckDataset.split.{field}" for field in ("enable=True", "train_percent=90")],
            "CheckDataset.split.val_percent: expected an integer between 0 and 100, got null.",
        ),
        (
            [
                f"CheckDataset.split.{field}"
                for field in ("enable=True", "train_percent=9", "val_percent=91", "seed=-1")
            ],
            "CheckDataset.split.seed: expected 0 to 4294967295, got -1.",
        ),
        (["CheckDataset.split=null"], "CheckDataset.split: expected a section with enable, train_percent, val_percent"),
    ],
)
def test_wrong_values(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_config(CONFIG, overrides)
    assert str(caught.value).startswith(f"{CONFIG}: {message}")


def test_percents_without_a_split_do_not_matter() -> None:
    config = read_config(CONFIG, ["CheckDataset.split.train_percent=80", "CheckDataset.split.val_percent=80"])
    assert config.CheckDataset.split.train_percent == 80


@pytest.mark.parametrize("override", ["Global", "Global.mode", "Global=train", ".mode=train", "Global.=train", "=x"])
def test_override_of_another_form(override: str) -> None:
    with pytest.raises(ConfigError, match=r"expected Key\.Sub=value, like Global\.mode=check_dataset, got "):
        read_config(CONFIG, [override])


def test_override_that_is_no_yaml() -> None:
    with pytest.raises(ConfigError, match=r"-o Train\.batch_size=\[: expected a YAML value, got '\['"):
        read_config(CONFIG, ["Train.batch_size=["])


def test_override_below_a_value() -> None:
    with pytest.raises(ConfigError, match=r"-o Global\.mode\.fast=1: expected a section mode, got 'check_dataset'"):
        read_config(CONFIG, ["Global.mode.fast=1"])


def test_missing_keys(tmp_path: Path) -> None:
    document = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    del document["Train"]["batch_size"], document["CheckDataset"]["convert"], document["Export"]
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(document))
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    assert str(caught.value) == (
        f"{path}: CheckDataset.convert is missing, expected a section with enable, src_dataset_type; "
        f"Train.batch_size is missing, expected an integer; Export is missing, expected a section with weight_path."
    )
    assert (
        read_config(
            path,
            [
                "Train.batch_size=1",
                "Export.weight_path=null",
                "CheckDataset.convert.enable=False",
                "CheckDataset.convert.src_dataset_type=null",
            ],
        ).Train.batch_size
        == 1
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[", "expected a YAML file, got one that cannot be read"),
        (b"\xff", "expected a YAML file, got one that cannot be read"),
        (b"", "expected the sections Global, CheckDataset, Train, Evaluate, Export, Predict, got null"),
        (b"- 1", "got [1]"),
    ],
)
def test_file_of_another_kind(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    assert message in str(caught.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a configuration file, but it does not exist; configs/ has one"):
        read_config(tmp_path / "no.yaml")
