"""A plan that does not fit is rejected, with a text that names the mismatch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from mlcls.base.machine import Gpu, Machine
from mlcls.engines.tensorrt.plan import check_plan, describe_target
from mlcls.errors import RepositoryError
from mlcls.repository.manifest import EngineRecord, Manifest, write_manifest

T4 = Gpu("Tesla T4", "7.5")
A10 = Gpu("NVIDIA A10", "8.6")
HERE = Machine((T4,), "10.13.2.6")
BUILT_FOR = {"library": "tensorrt", "version": "10.13.2.6", "gpu": "Tesla T4", "compute_capability": "7.5"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny_engine" / "1"
    folder.mkdir(parents=True)
    for name in ("model_spec.json", "model.onnx", "model.fp16.onnx", "model.plan"):
        (folder / name).write_text(name)
    write(folder)
    return folder


def write(folder: Path, built_for: dict[str, str] = BUILT_FOR, made_from: dict[str, str] | None = None) -> None:
    """Write a manifest of the folder's files, with the given record of the plan."""
    digests = {name: record.sha256 for name, record in write_manifest(folder, "tiny_engine").files.items()}
    fp16 = {"model.fp16.onnx": digests.get("model.fp16.onnx", "")}
    engines = [
        EngineRecord("model.onnx", "fp32", {"inference.json": "1" * 64}, {}),
        EngineRecord("model.fp16.onnx", "fp16", {"model.onnx": digests["model.onnx"]}, {}),
        EngineRecord("model.plan", "fp16", fp16 if made_from is None else made_from, {}, built_for),
    ]
    write_manifest(folder, "tiny_engine", engines)


def refusal(folder: Path, machine: Machine = HERE) -> str:
    with pytest.raises(RepositoryError) as caught:
        check_plan(folder, "model.plan", machine)
    text = str(caught.value)
    assert str(folder / "model.plan") in text
    return text


def test_what_a_record_says_and_what_is_checked_are_the_same(folder: Path) -> None:
    assert describe_target("tensorrt", "10.13.2.6", T4) == BUILT_FOR
    check_plan(folder, "model.plan", HERE)
    check_plan(folder, "model.plan", Machine((T4, Gpu("Quadro RTX 5000", "7.5")), "10.13.2.6"))
    # an older library does not tell its build number
    check_plan(folder, "model.plan", Machine((T4,), "10.13.2"))


@pytest.mark.parametrize("version", ["10.13.2.7", "10.13.3.9", "11.4.0+cuda13"])
def test_another_version(folder: Path, version: str) -> None:
    text = refusal(folder, Machine((T4,), version))
    assert f"was built with TensorRT 10.13.2.6, but here is TensorRT {version}" in text
    assert "mlcls build-engine MODEL --engine tensorrt" in text


@pytest.mark.parametrize("gpus", [(A10,), (T4, A10)])
def test_another_architecture(folder: Path, gpus: tuple[Gpu, ...]) -> None:
    text = refusal(folder, Machine(gpus, "10.13.2.6"))
    assert "built for Tesla T4 (compute capability 7.5), but here is NVIDIA A10 (compute capability 8.6)" in text


def test_no_gpu_and_no_tensorrt(folder: Path) -> None:
    text = refusal(folder, Machine((), "10.13.2.6"))
    assert "needs an NVIDIA GPU of compute capability 7.5, but the driver shows none here" in text
    assert "--target cpu" in text
    assert "needs TensorRT 10.13.2.6, but libnvinfer is not installed here" in refusal(folder, Machine((T4,), None))


def test_an_rtx_engine_is_no_plan(folder: Path) -> None:
    write(folder, describe_target("tensorrt_rtx", "1.7.1.116", None, "7.5"))
    assert "expected a plan of tensorrt, which Triton's tensorrt backend runs, got an engine of tensorrt_rtx" in (
        refusal(folder)
    )


@pytest.mark.parametrize("missing", ["library", "version", "compute_capability"])
def test_a_record_that_does_not_say(folder: Path, missing: str) -> None:
    write(folder, {key: value for key, value in BUILT_FOR.items() if key != missing})
    refusal(folder)


def test_another_source(folder: Path) -> None:
    write(folder, made_from={"model.fp16.onnx": "a" * 64})
    assert "was made from another model.fp16.onnx than the one beside it (SHA-256 aaaaaaaaaaaa..." in refusal(folder)
    write(folder, made_from={})
    assert "does not say what it was made from" in refusal(folder)
    (folder / "model.fp16.onnx").unlink()
    write(folder, made_from={"model.fp16.onnx": "a" * 64})
    assert "was made from model.fp16.onnx, which is not in its folder" in refusal(folder)


def test_the_source_of_the_source(folder: Path) -> None:
    manifest = Manifest.read(folder)
    engines: list[Any] = [
        msgspec.structs.replace(engine, made_from={"model.onnx": "b" * 64}) if "fp16.onnx" in engine.file else engine
        for engine in manifest.engines
    ]
    write_manifest(folder, "tiny_engine", engines)
    assert "was made from another model.onnx than the one beside it" in refusal(folder)
