"""PaddleX's configuration files and the overrides of the command line, read into frozen sections."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from mlcls.base.checks import finite_float
from mlcls.base.yaml_file import YamlError, parse_yaml, read_yaml
from mlcls.errors import ConfigError
from mlcls.model.catalog import OFFICIAL_MODELS
from mlcls.paddlex_sections import SOURCE_TYPES, PaddleXConfig

Section = TypeVar("Section")

_TYPE_NAMES: Final = {str: "text", int: "an integer", float: "a number", bool: "true or false", type(None): "null"}
# 1e-4 is a number to everyone but YAML 1.1, which wants 1.0e-4
_EXPONENT: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+")


def read_config(path: Path, overrides: Sequence[str] = ()) -> PaddleXConfig:
    """Reads a configuration file.

    Args:
        path: A YAML file with all the sections.
        overrides: `Key.Sub=value`, each in place of the file's value; the value is read as YAML, and `None` is null.

    Raises:
        ConfigError: The file cannot be read, or some keys are unknown or missing or have values of a wrong type; the
            text names them all.
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
            f"{path}: expected a configuration file, there is none; configs/ has one for each model."
        ) from None
    except (OSError, YamlError) as error:
        raise ConfigError(f"{path}: expected a YAML file, got one that cannot be read: {_one_line(error)}") from None
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
        raise ConfigError(f"-o {override}: expected a YAML value, got {text!r}: {_one_line(error)}") from None
    section = document
    for parent in parents:
        if section.get(parent) is None:
            section[parent] = {}  # of an unknown name, which is told with all that is wrong
        section = section[parent]
        if not isinstance(section, dict):
            raise ConfigError(f"-o {override}: expected a section {parent}, got {_describe(section)}.")
    section[name] = value


def _build(kind: type[Section], document: object, key: str, faults: list[str]) -> Section | None:
    """A section from its part of the document; None, and faults, where something in it is wrong."""
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
            yield f"Global.{name}: expected the path of a folder, got an empty text"
    convert, split = config.CheckDataset.convert, config.CheckDataset.split
    if convert.enable and convert.src_dataset_type not in SOURCE_TYPES:
        yield (
            f"CheckDataset.convert.src_dataset_type: expected {' or '.join(SOURCE_TYPES)} where convert.enable is "
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
            f"CheckDataset.split: expected train_percent and val_percent that make 100 together, got "
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


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
