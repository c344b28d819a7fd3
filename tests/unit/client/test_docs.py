"""Every public name is documented, and the examples do what they say."""

import asyncio
import doctest
import importlib
import os
import time
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image

import mlcls_client
from mlcls_client.testing import FakeServer
from support.quiet_http import served_folder

NAMES = [name for name in mlcls_client.__all__ if name != "__version__"]
# Modules whose examples are about what a program may import from them.
MODULES = ["mlcls_client", "mlcls_client.inputs.sources", "mlcls_client.testing"]


@pytest.fixture
def globs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: FakeServer) -> Any:
    """What the examples need: a server, and three pictures in the working directory."""
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    Image.new("RGB", (80, 60), (200, 0, 0)).save("photo.png")
    Image.new("RGB", (80, 60), (0, 200, 0)).save("photos/img2.png")
    Image.new("RGB", (80, 60), (0, 0, 200)).save("photos/img10.png")
    names = {name: getattr(mlcls_client, name) for name in NAMES}
    inputs = importlib.import_module("mlcls_client.inputs.sources")
    modules = {"asyncio": asyncio, "numpy": numpy, "os": os, "time": time}
    more = {"FakeServer": FakeServer, "iterate_sources": inputs.iterate_sources}
    with served_folder(tmp_path) as web:
        yield {**names, **modules, **more, "server": server, "photo_url": f"{web}/photo.png"}


def run_examples(documented: object, globs: dict[str, Any], name: str) -> int:
    finder, runner = doctest.DocTestFinder(exclude_empty=True), doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for test in finder.find(documented, name, globs=globs):
        runner.run(test, clear_globs=False)
    assert runner.failures == 0
    return runner.tries


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_has_an_example(name: str, globs: dict[str, Any]) -> None:
    documented = getattr(mlcls_client, name)
    assert ">>>" in documented.__doc__
    assert run_examples(documented, globs, name) >= 1


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module(name: str, globs: dict[str, Any]) -> None:
    assert run_examples(importlib.import_module(name), globs, name) >= 1
