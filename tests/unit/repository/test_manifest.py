"""The manifest of a version folder: its content, what it refuses, and that engines are added whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mlcls.base import files
from mlcls.base.files import sha256_of
from mlcls.errors import RepositoryError
from mlcls.repository import models
from mlcls.repository.manifest import EngineRecord, FileRecord, Manifest, tool_versions, verify_folder, write_manifest
from mlcls.repository.models import Repository
from support.edited_documents import edit_document
from support.repositories import snapshot

NAME = "animals-v2"
STEP = f"{NAME}_engine"
FP32 = EngineRecord("model.onnx", "fp32", {"inference.json": "1" * 64}, {"mlcls": "0.1.0"}, gate=({"flips": 0},))
PLAN = EngineRecord(
    "model.plan",
    "fp16",
    {"model.fp16.onnx": "2" * 64},
    {"tensorrt": "10.13"},
    {"gpu": "T4", "compute_capability": "7.5"},
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A version folder as an import leaves it."""
    folder = tmp_path / "models" / STEP / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"graph")
    (folder / "model_spec.json").write_text("{}")
    write_manifest(folder, STEP, [FP32])
    (tmp_path / "models" / NAME / "1").mkdir(parents=True)
    return folder


def add_engine(folder: Path, staged: Path, record: EngineRecord) -> None:
    Repository(folder.parents[1]).version(NAME, 1).add_engine(staged, record)


def stage(folder: Path, content: bytes = b"plan") -> Path:
    path = folder.parents[2] / "built"
    path.write_bytes(content)
    return path


def test_content(folder: Path) -> None:
    written = verify_folder(folder, STEP)
    assert written.step == STEP
    assert written.created.endswith("+00:00")
    assert written.files == {
        "model.onnx": FileRecord(sha256_of(folder / "model.onnx"), 5),
        "model_spec.json": FileRecord(sha256_of(folder / "model_spec.json"), 2),
    }
    assert written.engine("model.onnx") == FP32
    assert Manifest.read(folder) == written
    document = json.loads((folder / "manifest.json").read_text())
    assert [*document] == ["schema_version", "step", "created", "files", "engines"]
    assert [*document["engines"][0]] == ["file", "precision", "made_from", "tools", "built_for", "gate"]
    with pytest.raises(RepositoryError, match=r"has no model\.plan, only model\.onnx, model_spec\.json; build it"):
        written.engine("model.plan")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda folder: (folder / "model.onnx").write_bytes(b"GRAPH"), "model.onnx is not the file"),
        (lambda folder: (folder / "model.onnx").write_bytes(b"graph more"), "model.onnx is not the file"),
        (lambda folder: (folder / "model.onnx").unlink(), "model.onnx does not exist, but its manifest has it"),
        (
            lambda folder: (folder / "model.plan").write_bytes(b"x"),
            "has files that are not in its manifest, so their",
        ),
        (lambda folder: (folder / "model.py").write_bytes(b"x"), "origin is unknown: model.py; remove them, or build"),
        (lambda folder: (folder / "libtriton_mlcls_engine.so").touch(), "unknown: libtriton_mlcls_engine.so; remove"),
        (lambda folder: (folder / ".hidden").mkdir(), "origin is unknown: .hidden; remove"),
        (lambda folder: [(folder / f"{i}.so").touch() for i in (2, 1)], "origin is unknown: 1.so, 2.so; remove"),
        (lambda folder: (folder / "manifest.json").unlink(), "manifest.json does not exist; import the model"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json: expected a JSON document"),
    ],
)
def test_planted_fault(folder: Path, fault: Any, message: str) -> None:
    verify_folder(folder, STEP)
    fault(folder)
    with pytest.raises(RepositoryError) as caught:
        verify_folder(folder, STEP)
    assert message in str(caught.value)
    assert str(folder) in str(caught.value)


def test_only_the_named_files_are_read(folder: Path) -> None:
    """The size of the others is checked all the same."""
    (folder / "model.onnx").write_bytes(b"GRAPH")
    verify_folder(folder, STEP, ["model_spec.json"])
    with pytest.raises(RepositoryError, match=r"model\.onnx is not the file"):
        verify_folder(folder, STEP, ["model.onnx"])
    (folder / "model.onnx").write_bytes(b"cut")
    with pytest.raises(RepositoryError, match=r"model\.onnx is not the file"):
        verify_folder(folder, STEP, [])
    with pytest.raises(RepositoryError, match=r"has no model\.plan, only model\.onnx, model_spec\.json"):
        verify_folder(folder, STEP, ["model.plan"])


def test_another_step(folder: Path) -> None:
    with pytest.raises(RepositoryError, match=f"expected the manifest of pets_engine, got that of {STEP}"):
        verify_folder(folder, "pets_engine")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("schema_version", 2, "schema_version: expected 1, got 2"),
        ("more", 1, "unknown key more"),
        ("files", {"model.onnx": {}}, r"missing key files\.model\.onnx\.sha256"),
        ("engines", [{"precision": "fp8"}], r"engines\[0\]\.precision: expected one of fp32, fp16, int8, got 'fp8'"),
    ],
)
def test_a_document_that_is_not_a_manifest(folder: Path, key: str, value: object, words: str) -> None:
    path = folder / "manifest.json"
    path.write_text(edit_document(path.read_text(), key, value))
    with pytest.raises(RepositoryError, match=rf"{path}: {words}.*; import the model again: mlcls import MODEL\.$"):
        Manifest.read(folder)


def test_add_engine(folder: Path) -> None:
    staged = stage(folder)
    add_engine(folder, staged, PLAN)
    assert not staged.exists()
    assert (folder / "model.plan").read_bytes() == b"plan"
    written = verify_folder(folder, STEP)
    assert written.engines == (FP32, PLAN)
    assert set(written.files) == {"model.onnx", "model.plan", "model_spec.json"}
    assert not list(folder.parents[1].glob(f"{files.STAGING_PREFIX}*"))
    newer = msgspec.structs.replace(PLAN, tools={"tensorrt": "10.14"})
    add_engine(folder, stage(folder, b"newer plan"), newer)
    assert (folder / "model.plan").read_bytes() == b"newer plan"
    assert verify_folder(folder, STEP).engines == (FP32, newer)


@pytest.mark.parametrize(
    ("function", "module"),
    [("replace_folder", models), ("write_manifest", models), ("link", os), ("_exchange", files), ("move", shutil)],
)
def test_add_engine_interrupted(folder: Path, monkeypatch: pytest.MonkeyPatch, function: str, module: Any) -> None:
    """The folder stays as it was, and the command can be run again."""
    add_engine(folder, stage(folder), PLAN)
    before = snapshot(folder)

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, function, fail)
    with pytest.raises(OSError, match="No space left"):
        add_engine(folder, stage(folder, b"newer plan"), PLAN)
    monkeypatch.undo()
    assert snapshot(folder) == before
    verify_folder(folder, STEP)
    add_engine(folder, stage(folder, b"newer plan"), PLAN)
    assert (folder / "model.plan").read_bytes() == b"newer plan"


def test_add_engine_to_a_folder_that_is_mixed_up(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"another")
    with pytest.raises(RepositoryError, match=r"model\.onnx is not the file"):
        add_engine(folder, stage(folder), PLAN)
    assert not (folder / "model.plan").exists()


def test_tool_versions() -> None:
    assert set(tool_versions("numpy", "no-such-package")) == {"mlcls", "numpy"}
