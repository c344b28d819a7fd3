"""Configuration files: all six, overrides, and every way in which they can be wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from mlcls.errors import ConfigError
from mlcls.model.catalog import OFFICIAL_MODELS
from mlcls.paddlex.config import read_config

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
CONFIG = CONFIGS / "PP-LCNet_x1_0_ML.yaml"


def test_there_is_one_for_each_model() -> None:
    assert sorted(path.stem for path in CONFIGS.iterdir()) == sorted(OFFICIAL_MODELS)


@pytest.mark.parametrize("name", OFFICIAL_MODELS)
def test_configuration_of_a_model(name: str) -> None:
    path = CONFIGS / f"{name}.yaml"
    text = path.read_text(encoding="utf-8")
    config = read_config(path)
    assert config.Global.model == config.settings.model == name
    assert config.Train.pretrain_weight_path == config.Export.weight_path == OFFICIAL_MODELS[name].pretrained_url
    read = msgspec.to_builtins(config, enc_hook=str)
    for section, values in yaml.safe_load(text).items():
        assert values.items() <= {**read[section]}.items() or section == "CheckDataset"
    assert f"-c configs/{name}.yaml" in text.splitlines()[0]


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("Global.mode=train", "train"),
        ("Global.dataset_dir=./a=b", Path("a=b")),
        ('Global.output="2017"', Path("2017")),
        ('Predict.input="2017"', "2017"),
        ("CheckDataset.convert.enable=no", False),
        ("CheckDataset.split.train_percent=90", 90),
        ("Train.learning_rate=1e-4", 1e-4),
        ("Train.learning_rate=1", 1.0),
        ("Train.image_size=[64, 96]", (64, 96)),
        ("Train.num_classes=null", None),
        ("Train.num_classes=None", None),
        ("Train.pretrain_weight_path=", None),
        ("Train.pretrain_weight_path=''", None),
        ("Predict.kernel_option.run_mode=paddle", "paddle"),
    ],
)
def test_override(override: str, value: object) -> None:
    """The last one holds."""
    found: Any = read_config(CONFIG, [override.partition("=")[0] + "=[]", override])
    for name in override.partition("=")[0].split("."):
        found = getattr(found, name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("Global.mod=train", "unknown key Global.mod; expected only model, mode, dataset_dir, device, output."),
        ("Globl.mode=train", "unknown key Globl; expected only Global, CheckDataset, Train, Evaluate, Export, Pre"),
        ("Train.batch_size=many", "Train.batch_size: expected int, got 'many'."),
        ("Train.batch_size=True", "Train.batch_size: expected int, got True."),
        ("Train.batch_size=null", "Train.batch_size: expected int, got None."),
        ("Train.num_classes=[5]", "Train.num_classes: expected int | null, got [5]."),
        ("Train.learning_rate=fast", "Train.learning_rate: expected float | null, got 'fast'."),
        ("Global.output=2017", "Global.output: expected str, got 2017."),
        ("Predict.input=''", "Predict.input: expected str, got None."),
        ("Evaluate.log_interval=0", "Evaluate.log_interval: expected int >= 1, got 0."),
        ("Predict.kernel_option.run_mode=trt_fp16", "Predict.kernel_option.run_mode: expected paddle, got 'trt"),
        ("CheckDataset.convert.enable=True", "CheckDataset.convert.src_dataset_type: expected COCO if enable is"),
        ("CheckDataset.convert.src_dataset_type=LabelMe", "CheckDataset.convert.src_dataset_type: expected COCO, got"),
        ("CheckDataset.split.enable=True", "CheckDataset.split: expected train_percent and val_percent that add up"),
        ("CheckDataset.split.train_percent=100", "CheckDataset.split.train_percent: expected int <= 99, got 100."),
        ("CheckDataset.split.seed=-1", "CheckDataset.split.seed: expected int >= 0, got -1."),
        ("CheckDataset.split=null", "CheckDataset.split: expected object, got None."),
        ("Global.model=ResNet50", "Global.model: expected one of CLIP_vit_base_patch16_448_ML, "),
    ],
)
def test_wrong_values(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_config(CONFIG, [override])
    assert str(caught.value).startswith(f"{CONFIG}: {message}")


def test_percents_of_a_split_add_up() -> None:
    percents = ["CheckDataset.split.train_percent=80", "CheckDataset.split.val_percent=10"]
    with pytest.raises(ConfigError, match="that add up to 100, got 80 and 10"):
        read_config(CONFIG, ["CheckDataset.split.enable=True", *percents])
    assert read_config(CONFIG, percents).CheckDataset.split.train_percent == 80, "without a split, they do not matter"


@pytest.mark.parametrize(("old", "new"), [("0.0001", "1e-4"), ("resume_path: null", "resume_path: None")])
def test_what_yaml_takes_for_text(tmp_path: Path, old: str, new: str) -> None:
    """A number with an exponent, and Python's word for null, in the file itself."""
    path = tmp_path / "config.yaml"
    text = CONFIG.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    assert read_config(path) == read_config(CONFIG)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("Global.mode", "expected Key.Sub=value, like Global.mode=check_dataset, got "),
        ("Global=train", "expected Key.Sub=value, like Global.mode=check_dataset, got "),
        (".mode=train", "expected Key.Sub=value, like Global.mode=check_dataset, got "),
        ("Train.batch_size=[", "expected a YAML value, got '['"),
        ("Global.mode.fast=1", "expected a section mode, got 'check_dataset'"),
    ],
)
def test_override_of_another_form(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_config(CONFIG, [override])
    assert str(caught.value).startswith(f"-o {override}: {message}")


def test_missing_keys(tmp_path: Path) -> None:
    """Fields of `Train` have defaults."""
    document = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    del document["Train"]["batch_size"], document["Export"]
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(document))
    with pytest.raises(ConfigError, match="missing key Export; expected Global, CheckDataset, Train, Evaluate, Exp"):
        read_config(path)
    assert read_config(path, ["Export.weight_path=null"]).Train.batch_size == 32


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[", "expected a YAML file, got one that cannot be read"),
        (b"\xff", "expected a YAML file, got one that cannot be read"),
        (b"", "expected object, got None"),
        (b"- 1", "expected object, got [1]"),
        (None, "expected a configuration file, but it does not exist; configs/ has one"),
    ],
)
def test_file_of_another_kind(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "config.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_config(path, ["Global.mode=train"])
    assert message in str(caught.value)
