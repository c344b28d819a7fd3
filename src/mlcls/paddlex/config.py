"""Read PaddleX's configuration files, with the overrides of the command line, into frozen sections."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from mlcls.base.checks import finite_float
from mlcls.base.text import one_line
from mlcls.base.yaml_file import YamlError, parse_yaml, read_yaml
from mlcls.errors import ConfigError
from mlcls.model.catalog import OFFICIAL_MODELS
from mlcls.training.settings import TrainSettings

# Formats that `CheckDataset.convert` can read.
SOURCE_TYPES: Final = ("COCO",)


@dataclasses.dataclass(frozen=True)
class GlobalSection:
    """The settings of all modes.

    Attributes:
        model: One of the six models.
        mode: What to do; see `mlcls.paddlex.main`.
        dataset_dir: Folder of the dataset.
        device: `cpu`, `gpu:0` or `gpu:0,1`.
        output: Folder that everything is written to.
    """

    model: str
    mode: str
    dataset_dir: str
    device: str
    output: str


@dataclasses.dataclass(frozen=True)
class ConvertSection:
    """Conversion of a dataset from another format.

    Attributes:
        enable: Whether to convert.
        src_dataset_type: Present format of the dataset, one of `SOURCE_TYPES`.
    """

    enable: bool
    src_dataset_type: str | None


@dataclasses.dataclass(frozen=True)
class SplitSection:
    """A new split into training and validation images.

    Attributes:
        enable: Whether to split.
        train_percent: Percentage of training images.
        val_percent: Percentage of validation images; both add up to 100.
        seed: Another seed gives another split of the same quality (not in PaddleX, whose split differs each time).
    """

    enable: bool
    train_percent: int | None
    val_percent: int | None
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class CheckDatasetSection:
    """Mode `check_dataset`."""

    convert: ConvertSection
    split: SplitSection


@dataclasses.dataclass(frozen=True)
class TrainSection:
    """Mode `train`.

    Attributes:
        num_classes: Number of labels; null accepts any number.
        epochs_iters: Number of epochs.
        batch_size: Images per step and device.
        learning_rate: Highest learning rate.
        pretrain_weight_path: Weights to start from, a path or a URL; null starts with fresh ones.
        warmup_steps: Epochs in which the learning rate rises.
        resume_path: Checkpoint to resume from.
        log_interval: Steps between two lines of the log.
        eval_interval: Epochs between two evaluations.
        save_interval: Epochs between two checkpoints.
        seed: Seed of everything random. This field and the following are not in PaddleX; see
            `mlcls.training.settings.TrainSettings`.
        amp: Whether to use mixed precision.
        image_size: Height and width of the network's input.
        threshold: Threshold of every label of the exported model.
        weight_decay: Weight decay of the parameters that are not one-dimensional.
        ema_decay: Decay of the moving average of the weights.
        cutout: Whether a rectangle is cut out of each training image.
        rand_augment: Whether RandAugment is applied to training images.
        num_workers: Threads per process that read images.
        backbone_scale: Width of a PP-LCNet.
        decoder_width: Width of the head.
        gradient_clip: Largest norm of the gradients; 0 for no limit.
    """

    num_classes: int | None
    epochs_iters: int
    batch_size: int
    learning_rate: float
    pretrain_weight_path: str | None
    warmup_steps: int
    resume_path: str | None
    log_interval: int
    eval_interval: int
    save_interval: int
    seed: int = TrainSettings.seed
    amp: bool = TrainSettings.amp
    image_size: int = TrainSettings.image_size[0]
    threshold: float = TrainSettings.threshold
    weight_decay: float = TrainSettings.weight_decay
    ema_decay: float = TrainSettings.ema_decay
    cutout: bool = TrainSettings.cutout
    rand_augment: bool = TrainSettings.rand_augment
    num_workers: int = TrainSettings.num_workers
    backbone_scale: float = TrainSettings.backbone_scale
    decoder_width: int = TrainSettings.decoder_width
    gradient_clip: float = TrainSettings.gradient_clip


@dataclasses.dataclass(frozen=True)
class EvaluateSection:
    """Mode `evaluate`: the weights, and the number of batches between two lines of the log."""

    weight_path: str | None
    log_interval: int


@dataclasses.dataclass(frozen=True)
class ExportSection:
    """Mode `export`: the weights, a path or a URL."""

    weight_path: str | None


@dataclasses.dataclass(frozen=True)
class KernelOptionSection:
    """How to run the model; `paddle` is Paddle's own engine."""

    run_mode: str = "paddle"


@dataclasses.dataclass(frozen=True)
class PredictSection:
    """Mode `predict`: the batch size, the folder of the inference model, and an image, a folder or a URL."""

    batch_size: int
    model_dir: str | None
    input: str
    kernel_option: KernelOptionSection = KernelOptionSection()


@dataclasses.dataclass(frozen=True)
class PaddleXConfig:
    """A whole configuration file."""

    Global: GlobalSection
    CheckDataset: CheckDatasetSection
    Train: TrainSection
    Evaluate: EvaluateSection
    Export: ExportSection
    Predict: PredictSection


Section = TypeVar("Section")

_TYPE_NAMES: Final = {str: "text", int: "an integer", float: "a number", bool: "true or false", type(None): "null"}
# YAML 1.1 takes 1.0e-4 for a number, but 1e-4 for text
_EXPONENT: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+")


def read_config(path: Path, overrides: Sequence[str] = ()) -> PaddleXConfig:
    """Read a configuration file.

    Args:
        path: A YAML file with all sections.
        overrides: `Key.Sub=value`, each in place of the file's value; the value is read as YAML, and `None` is null.

    Raises:
        ConfigError: The file cannot be read, or keys are unknown or missing or have a value of the wrong type; the text
            names them all.
    """
    document = _read_document(path)
    for override in overrides:
        _apply_override(document, override)
    faults: list[str] = []
    config = _build(PaddleXConfig, document, "", faults)
    faults += [] if config is None else _check_values(config)
    if faults or config is None:
        raise ConfigError(f"{path}: {'; '.join(faults)}.")
    return config


def _read_document(path: Path) -> dict[str, Any]:
    try:
        document = read_yaml(path)
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: expected a configuration file, but it does not exist; configs/ has one for each model."
        ) from None
    except (OSError, YamlError) as error:
        raise ConfigError(f"{path}: expected a YAML file, got one that cannot be read: {one_line(error)}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: expected the sections {_names(PaddleXConfig)}, got {_describe(document)}.")
    return document


def _apply_override(document: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    *parents, name = key.split(".")
    if not equals or not parents or not all((*parents, name)):
        raise ConfigError(f"-o {override}: expected Key.Sub=value, like Global.mode=check_dataset, got {override!r}.")
    try:
        value = None if text == "None" else parse_yaml(text)  # None is what PaddleX's users write
    except YamlError as error:
        raise ConfigError(f"-o {override}: expected a YAML value, got {text!r}: {one_line(error)}") from None
    section = document
    for parent in parents:
        if section.get(parent) is None:
            section[parent] = {}  # an unknown name is reported later, with the other faults
        section = section[parent]
        if not isinstance(section, dict):
            raise ConfigError(f"-o {override}: expected a section {parent}, got {_describe(section)}.")
    section[name] = value


def _build(kind: type[Section], document: object, key: str, faults: list[str]) -> Section | None:
    """Return a section from its part of the document; None, with its faults added, if something is wrong."""
    if not isinstance(document, dict):
        faults.append(f"{key}: expected a section with {_names(kind)}, got {_describe(document)}")
        return None
    before = len(faults)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    wanted = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for name in document:
        if name not in fields:
            faults.append(f"{_join(key, name)} is unknown, expected {_names(kind)}")
    for name, field in fields.items():
        full = _join(key, name)
        if name not in document:
            if field.default is dataclasses.MISSING:
                faults.append(f"{full} is missing, expected {_accepted(wanted[name])}")
        elif dataclasses.is_dataclass(wanted[name]):
            values[name] = _build(wanted[name], document[name], full, faults)
        else:
            values[name] = _read_value(wanted[name], document[name], full, faults)
    return kind(**values) if len(faults) == before else None


def _read_value(wanted: Any, value: object, key: str, faults: list[str]) -> object:
    choices = typing.get_args(wanted) or (wanted,)
    if type(value) in choices and not isinstance(value, float):
        return value
    if float in choices:
        number = float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else finite_float(value)
        if number is not None:
            return number
    hint = " (put it in quotes to make it text)" if str in choices and isinstance(value, (bool, int, float)) else ""
    faults.append(f"{key}: expected {_accepted(wanted)}, got {_describe(value)}{hint}")
    return None


def _check_values(config: PaddleXConfig) -> Iterator[str]:
    if config.Global.model not in OFFICIAL_MODELS:
        yield f"Global.model: expected one of {', '.join(OFFICIAL_MODELS)}, got {config.Global.model!r}"
    for name in ("dataset_dir", "output"):
        if not getattr(config.Global, name).strip():
            yield f"Global.{name}: expected the path of a folder, got an empty string"
    convert, split = config.CheckDataset.convert, config.CheckDataset.split
    if convert.enable and convert.src_dataset_type not in SOURCE_TYPES:
        yield (
            f"CheckDataset.convert.src_dataset_type: expected {' or '.join(SOURCE_TYPES)} if convert.enable is "
            f"true, got {_describe(convert.src_dataset_type)}"
        )
    if not split.enable:
        return
    if not 0 <= split.seed < 2**32:
        yield f"CheckDataset.split.seed: expected 0 to {2**32 - 1}, got {split.seed}"
    percents = (split.train_percent, split.val_percent)
    for name, percent in zip(("train_percent", "val_percent"), percents, strict=True):
        if percent is None or not 0 < percent < 100:
            yield f"CheckDataset.split.{name}: expected an integer between 0 and 100, got {_describe(percent)}"
    if None not in percents and sum(filter(None, percents)) != 100:
        yield (
            f"CheckDataset.split: expected train_percent and val_percent that add up to 100, got "
            f"{percents[0]} + {percents[1]} = {sum(filter(None, percents))}"
        )


def _accepted(wanted: Any) -> str:
    if dataclasses.is_dataclass(wanted):
        return f"a section with {_names(wanted)}"
    return " or ".join(_TYPE_NAMES[choice] for choice in typing.get_args(wanted) or (wanted,))


def _names(kind: Any) -> str:
    return ", ".join(field.name for field in dataclasses.fields(kind))


def _join(key: str, name: object) -> str:
    return f"{key}.{name}" if key else str(name)


def _describe(value: object) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
