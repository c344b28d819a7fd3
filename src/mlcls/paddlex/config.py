"""Read PaddleX's configuration files, with the overrides of the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from mlcls.base.documents import Document, convert
from mlcls.base.text import clip, one_line
from mlcls.base.yaml_file import YamlError, parse_yaml, read_yaml
from mlcls.errors import ConfigError
from mlcls.model.catalog import OFFICIAL_MODELS
from mlcls.training.settings import Count, TrainSection, TrainSettings

Percent = Annotated[int, Meta(gt=0, lt=100)]


class GlobalSection(Document, frozen=True):
    """The settings of all modes.

    Attributes:
        model: One of the six models.
        mode: What to do; each mode is a module of `mlcls.paddlex`.
        dataset_dir: Folder of the dataset.
        device: `cpu`, `gpu:0` or `gpu:0,1`.
        output: Folder that everything is written to.
    """

    model: str
    mode: Literal["check_dataset", "train", "evaluate", "export", "predict"]
    dataset_dir: Path
    device: str
    output: Path

    def __post_init__(self) -> None:
        if self.model not in OFFICIAL_MODELS:
            raise ValueError(f"model: expected one of {', '.join(OFFICIAL_MODELS)}, got {self.model!r}")


class ConvertSection(Document, frozen=True):
    """Conversion of a dataset: whether to convert, and its present format."""

    enable: bool
    src_dataset_type: Literal["COCO"] | None

    def __post_init__(self) -> None:
        if self.enable and self.src_dataset_type is None:
            raise ValueError("src_dataset_type: expected COCO if enable is true, got null")


class SplitSection(Document, frozen=True):
    """A new split into training and validation images.

    Attributes:
        enable: Whether to split.
        train_percent: Percentage of training images.
        val_percent: Percentage of validation images; both add up to 100.
        seed: Another seed gives another split of the same quality (not in PaddleX, whose split differs each time).
    """

    enable: bool
    train_percent: Percent | None
    val_percent: Percent | None
    seed: Annotated[int, Meta(ge=0, lt=2**32)] = 0

    def __post_init__(self) -> None:
        if self.enable and (self.train_percent or 0) + (self.val_percent or 0) != 100:
            raise ValueError(
                f"expected train_percent and val_percent that add up to 100, got {self.train_percent} and "
                f"{self.val_percent}"
            )


class CheckDatasetSection(Document, frozen=True):
    """Mode `check_dataset`.

    Attributes:
        convert: Conversion from another format.
        split: A new split.
        strict: Whether defects of a dataset that can be trained on are errors, too (not in PaddleX).
    """

    convert: ConvertSection
    split: SplitSection
    strict: bool = False


class EvaluateSection(Document, frozen=True):
    """Mode `evaluate`.

    Attributes:
        weight_path: The weights, a path or a URL; None for the best of the training in `Global.output`.
        log_interval: Batches between two lines of the log.
    """

    weight_path: str | None
    log_interval: Count


class ExportSection(Document, frozen=True):
    """Mode `export`: the weights, a path or a URL."""

    weight_path: str | None


class KernelOptionSection(Document, frozen=True):
    """How to run the model: only Paddle's own engine, none of PaddleX's for TensorRT, oneDNN and half precision."""

    run_mode: Literal["paddle"] = "paddle"


class PredictSection(Document, frozen=True):
    """Mode `predict`: the batch size, the inference model, and an image, a folder or a URL."""

    batch_size: Count
    model_dir: str | None
    input: str
    kernel_option: KernelOptionSection = KernelOptionSection()


class PaddleXConfig(Document, frozen=True):
    """A whole configuration file."""

    Global: GlobalSection
    CheckDataset: CheckDatasetSection
    Train: TrainSection
    Evaluate: EvaluateSection
    Export: ExportSection
    Predict: PredictSection

    @property
    def settings(self) -> TrainSettings:
        """The settings of a training.

        Raises:
            TrainingError: There is no such device.
            ModelFormatError: The architecture does not come in this size.
        """
        shared = self.Global
        fields = msgspec.structs.asdict(self.Train)
        return TrainSettings(shared.model, shared.dataset_dir, shared.output, shared.device, **fields)


def read_config(path: Path, overrides: Sequence[str] = ()) -> PaddleXConfig:
    """Read a YAML file with all sections; overrides `Key.Sub=value`, with a YAML value, go before the file's values.

    As PaddleX's users expect, `None` and an empty string are null, and 1e-4 is a number, which is text in YAML 1.1.

    Raises:
        ConfigError: The file cannot be read, a key is unknown or missing, or a value is wrong.
    """
    try:
        document = read_yaml(path)
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: expected a configuration file, but it does not exist; configs/ has one for each model."
        ) from None
    except (OSError, YamlError) as error:
        raise ConfigError(f"{path}: expected a YAML file, got one that cannot be read: {one_line(error)}") from None
    if isinstance(document, dict):
        for override in overrides:
            _apply_override(document, override)
    _set_nulls(document, set())
    return convert(document, PaddleXConfig, ConfigError, str(path), strict=False)


def _apply_override(document: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    *parents, name = key.split(".")
    if not equals or not parents or not all((*parents, name)):
        raise ConfigError(f"-o {override}: expected Key.Sub=value, like Global.mode=check_dataset, got {override!r}.")
    try:
        value = parse_yaml(text)
    except YamlError as error:
        raise ConfigError(f"-o {override}: expected a YAML value, got {text!r}: {one_line(error)}") from None
    section = document
    for parent in parents:
        if section.get(parent) is None:
            section[parent] = {}  # an unknown name is reported later
        section = section[parent]
        if not isinstance(section, dict):
            raise ConfigError(f"-o {override}: expected a section {parent}, got {clip(section)}.")
    section[name] = value


def _set_nulls(section: Any, seen: set[int]) -> None:
    if not isinstance(section, dict) or id(section) in seen:
        return
    seen.add(id(section))  # by aliases, a file can have more sections than could ever be visited
    for key, value in section.items():
        section[key] = None if value in ("", "None") else value
        _set_nulls(value, seen)
