"""`mlcls build-engine`: its table of builders, and wrong usage."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import pytest

from mlcls.base.machine import read_gpus
from mlcls.cli import main
from mlcls.commands.build_engine import ENGINES
from mlcls.engines.building import BuildRequest
from mlcls.engines.tensorrt.build import build_plan, build_rtx_engines
from mlcls.errors import ConversionError, RepositoryError
from mlcls.repository.models import ModelVersion, Repository


@pytest.mark.parametrize("engine", ENGINES)
def test_each_engine_has_a_builder(engine: str, tmp_path: Path) -> None:
    module, function = ENGINES[engine].split(":")
    build = getattr(importlib.import_module(module), function)
    assert list(inspect.signature(build).parameters) == ["request"]
    if engine != "tensorrt":  # which first of all needs a GPU
        with pytest.raises((RepositoryError, ConversionError)):
            nothing = ModelVersion(Repository(tmp_path), "nothing", 1)
            list(build(BuildRequest(nothing, (), ("7.5",), tmp_path.parent / "output")))


@pytest.mark.parametrize("extra", [["--output", "folder"], ["--compute-capability", "7.5"]])
def test_options_of_another_engine(extra: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["build-engine", "tiny", "--engine", "fp16", "--repository", str(tmp_path), *extra]) == 1
    assert "with --engine tensorrt-rtx only, got them with --engine fp16" in capsys.readouterr().err


def test_rtx_engines_need_a_place_and_an_architecture(tmp_path: Path) -> None:
    root = tmp_path / "model_repository"
    tiny = ModelVersion(Repository(root), "tiny", 1)
    with pytest.raises(ConversionError, match="Expected --output DIR"):
        list(build_rtx_engines(BuildRequest(tiny, compute_capabilities=("7.5",))))
    with pytest.raises(ConversionError, match="Expected the architectures to build for"):
        list(build_rtx_engines(BuildRequest(tiny, output=tmp_path)))
    with pytest.raises(ConversionError, match="Expected a folder outside of the model repository"):
        list(build_rtx_engines(BuildRequest(tiny, (), ("7.5",), root / "tiny_engine" / "1")))


@pytest.mark.skipif(bool(read_gpus()), reason="this machine has a GPU")
def test_a_plan_needs_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"^A TensorRT plan is built on the GPU that runs it, but the driver"):
        list(build_plan(BuildRequest(ModelVersion(Repository(tmp_path), "tiny", 1))))
