"""docs/architecture.md says what the tree and the contract of import-linter say."""

import importlib
import re
import sys
from itertools import groupby
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

TOML: Any = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "mlcls"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PICTURE = ROOT / "docs" / "images" / "layers.svg"

# Files of an imported model, and of a target, which the page names and git does not keep.
_NOT_IN_GIT = {"configs/cpu.pbtxt", "configs/int8.pbtxt", "configs/gpu.pbtxt"}


def named_paths() -> list[str]:
    spans = re.findall(r"`([^`\n]+)`", PAGE)
    return sorted(
        {span for span in spans if re.fullmatch(r"[\w.-]+(/[\w.-]+)*/?", span) and _is_path(span)} - _NOT_IN_GIT
    )


def _is_path(span: str) -> bool:
    return "/" in span or span.endswith((".py", ".toml", ".yml"))


def layers_of_page() -> list[set[str]]:
    table = PAGE.split("| layer, highest first |")[1].split("\n\n")[0]
    rows = [line.split("|")[1] for line in table.splitlines()[2:]]
    return [set(re.findall(r"`(\w+)`", row)) for row in rows]


def layers_of_picture() -> list[set[str]]:
    texts = ElementTree.parse(PICTURE).getroot().iter("{http://www.w3.org/2000/svg}text")
    wings = [(float(text.attrib["y"]), text.text or "") for text in texts if text.get("class") == "wing"]
    return [{name for _, name in row} for _, row in groupby(sorted(wings), key=lambda wing: wing[0])]


def layers_of_contract() -> list[set[str]]:
    settings: dict[str, Any] = TOML.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [{name.strip(" ()") for name in re.split(r"[|:]", layer)} for layer in layers]


@pytest.mark.parametrize("path", named_paths())
def test_each_path_of_the_page_exists(path: str) -> None:
    assert (ROOT / path).exists() or (PACKAGE / path).exists() or path in ("inference.yml", "main.py")


def test_each_wing_is_in_the_page_once() -> None:
    wings = {folder.name for folder in PACKAGE.iterdir() if (folder / "__init__.py").is_file()}
    modules = {file.stem for file in PACKAGE.glob("*.py")} & {"cli", "errors"}
    named = [name for layer in layers_of_page() for name in layer]
    assert sorted(named) == sorted(wings | modules)


def test_the_page_has_the_layers_of_the_contract() -> None:
    assert layers_of_page() == layers_of_contract()


def test_the_picture_has_the_layers_of_the_contract() -> None:
    assert layers_of_picture() == layers_of_contract()
