"""No part of this project unpickles, evaluates or runs what a file or a request says: read from its source.

`mlcls.paddle.restricted_pickle` is the one place that touches `pickle`, and it names nothing that a file wants (its own
tests).
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from support.processes import ROOT

FOLDERS = ("src", "client/src", "python_backends", "benchmarks", "demo", "scripts", "docker")

# Modules whose readers run what they read.
MODULES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "jsonpickle", "imp"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
# Functions by the last name of their module; `*` is any.
CALLS = {
    "paddle": {"load"},
    "torch": {"load"},
    "io": {"load"},
    "jit": {"load"},
    "static": {"load", "load_program_state"},
    "yaml": {"load", "load_all", "full_load", "unsafe_load", "safe_load", "safe_load_all"},
    "onnx": {"load", "load_model", "load_from_string"},
    "os": {"system", "popen"},
    "tempfile": {"mktemp"},
    "shutil": {"unpack_archive"},
    "ssl": {"_create_unverified_context"},
    "logging": {"config"},
    "*": {"extractall", "extract", "read_pickle"},
}
# Options by name and the one value that they may have.
OPTIONS = {"allow_pickle": False, "shell": False, "verify": True, "load_external_data": False, "check_hostname": True}

# What is allowed where, and why.
ALLOWED = {
    ("src/mlcls/paddle/restricted_pickle.py", "import pickle"): "the restricted reader itself",
    ("src/mlcls/base/yaml_file.py", "yaml.load"): "with a SafeLoader that has limits",
    ("src/mlcls/conversion/onnx_file.py", "onnx.load"): "after the checks, without external data",
}


def find_dangers(source: str) -> Iterator[str]:
    """What in a Python source is dangerous."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (f"import {alias.name}" for alias in node.names if alias.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom):
            last = str(node.module).rpartition(".")[2]
            if str(node.module).split(".")[0] in MODULES:
                yield f"import {node.module}"
            yield from (f"{last}.{alias.name}" for alias in node.names if alias.name in CALLS.get(last, ()))
        elif isinstance(node, ast.Call):
            yield from _find_in_call(node)
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "builtins" and node.attr in BUILTINS:
            yield node.attr


def _find_in_call(node: ast.Call) -> Iterator[str]:
    function = node.func
    if isinstance(function, ast.Name) and function.id in BUILTINS:
        yield function.id
    if isinstance(function, ast.Attribute):
        owner = function.value
        last = owner.id if isinstance(owner, ast.Name) else owner.attr if isinstance(owner, ast.Attribute) else ""
        if function.attr in CALLS.get(last, set()) | CALLS["*"]:
            yield f"{last}.{function.attr}"
        named = [str(argument.value) for argument in node.args[:1] if isinstance(argument, ast.Constant)]
        if function.attr == "import_module" and named and named[0].split(".")[0] in MODULES:
            yield f"import {named[0]}"
    for keyword in node.keywords:
        if keyword.arg in OPTIONS:
            value = keyword.value
            if not isinstance(value, ast.Constant) or value.value is not OPTIONS[keyword.arg]:
                yield f"{keyword.arg}={ast.unparse(value)}"


def test_nothing_dangerous_is_called() -> None:
    sources = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
    assert len(sources) > 150
    found = {
        (path.relative_to(ROOT).as_posix(), danger)
        for path in sources
        for danger in find_dangers(path.read_text(encoding="utf-8"))
    }
    assert found == ALLOWED.keys()


@pytest.mark.parametrize(
    ("source", "danger"),
    [
        ("import pickle", "import pickle"),
        ("def f():\n    from pickle import loads", "import pickle"),
        ("import importlib\nimportlib.import_module('marshal').loads(b'')", "import marshal"),
        ("import builtins\nrun = builtins.exec", "exec"),
        ("paddle.load(path)", "paddle.load"),
        ("from paddle import load", "paddle.load"),
        ("paddle.framework.io.load(path)", "io.load"),
        ("np.load(path, allow_pickle=flag)", "allow_pickle=flag"),
        ("yaml.load(text, Loader=yaml.Loader)", "yaml.load"),
        ("subprocess.run(text, shell=True)", "shell=True"),
        ("tarfile.open(p).extract(m)", ".extract"),
    ],
)
def test_the_search_finds(source: str, danger: str) -> None:
    assert danger in list(find_dangers(source))
    harmless = "network.eval()\nsubprocess.run(list, shell=False)\nre.compile(x)\nnp.load(p)\njson.load(f)"
    assert list(find_dangers(harmless)) == []


def test_the_reader_of_pickles_uses_one_name_of_the_module() -> None:
    tree = ast.parse((ROOT / "src/mlcls/paddle/restricted_pickle.py").read_text(encoding="utf-8"))
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "pickle"
    }
    assert used == {"Unpickler"}
    (reader,) = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == "_Reader"]
    defined = {node.name for node in reader.body if isinstance(node, ast.FunctionDef)}
    assert defined == {"find_class", "persistent_load"}
    assert not any(isinstance(node, ast.Call) and "super" in ast.unparse(node) for node in ast.walk(reader))
