"""One style in all code that is kept: what a machine can refuse, beside ruff, mypy and import-linter."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.processes import ROOT

FOLDERS = ("src", "client/src", "python_backends", "benchmarks", "demo", "scripts", "docker")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "client").glob("*.md"), *(ROOT / "docs").rglob("*.md")])
# Packages whose `__init__.py` is a public face: what it names may be defined elsewhere.
FACES = {"src/mlcls/__init__.py", "client/src/mlcls_client/__init__.py"}

BRITISH = re.compile(
    r"\b\w*(?:colour|behaviour|neighbour|labelled|labelling|normalis|initialis|quantis|serialis|utilis|optimis[ei]|centred|"
    r"favour|honour|catalogue|artefact|licence|grey)\w*",
    re.IGNORECASE,
)
# Turns of phrase of an earlier day that are not English.
ODD = re.compile(
    r"\b(?:refused? in words|in words about|that is none\b|that are none\b|held against|so manieth|is told of|"
    r"are told of|hold all locked)\b",
    re.IGNORECASE,
)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def find_faults(source: str, is_face: bool) -> Iterator[str]:
    """What in a module is not in the style."""
    tree = ast.parse(source)
    for number, line in enumerate(source.splitlines(), 1):
        if re.match(r"\s*#:", line):
            yield f"{number}: expected a comment that begins with #, got #:"
        if role := re.search(r":(?:attr|class|data|exc|func|meth|mod):`", line):
            yield f"{number}: expected the name in backticks alone, got the Sphinx role {role[0]}"
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if is_constant(name) and not is_type(value):
                yield f"{node.lineno}: expected {name}: Final = ..., got no Final"
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation) if is_constant(name):
                if not ast.unparse(annotation).startswith(("Final", "TypeAlias")):
                    yield f"{node.lineno}: expected {name}: Final[...], got {ast.unparse(annotation)}"
            case ast.ImportFrom(names=names) if not is_face:
                for alias in names:
                    if alias.name == alias.asname:
                        yield f"{node.lineno}: expected a name to be imported from where it is defined, got a re-export"


def is_constant(name: str) -> bool:
    return re.fullmatch(r"_?[A-Z][A-Z0-9_]+", name) is not None


def is_type(value: ast.expr) -> bool:
    return isinstance(value, ast.Call) and ast.unparse(value.func) in ("TypeVar", "ParamSpec", "NewType")


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_module_is_in_the_style(path: Path) -> None:
    assert list(find_faults(path.read_text(encoding="utf-8"), name_of(path) in FACES)) == []


@pytest.mark.parametrize("path", [*FILES, *PAGES], ids=name_of)
def test_the_words_are_american_and_plain(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert BRITISH.findall(text) == []
    assert ODD.findall(text) == []


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("#: How long.\n_LIMIT: Final = 3\n", "got #:"),
        ('"""See :class:`Model`."""\n', "Sphinx role :class:`"),
        ("LIMIT = 3\n", "expected LIMIT: Final"),
        ("LIMIT: int = 3\n", "expected LIMIT: Final[...], got int"),
        ("from a import b as b\n", "got a re-export"),
    ],
)
def test_what_is_found(source: str, fault: str) -> None:
    (found,) = find_faults(source, is_face=False)
    assert fault in found
    assert list(find_faults('T = TypeVar("T")\nLimits = dict[str, int]\nLIMIT: Final = 3\n', is_face=False)) == []
