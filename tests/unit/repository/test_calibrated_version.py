"""Calibrated thresholds in the repository: a version of its own with the same engines, or nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from mlcls.base.files import folder_lock
from mlcls.cli import main
from mlcls.errors import RepositoryError, SpecError
from mlcls.model.spec import ModelSpec
from mlcls.releases import rollout
from mlcls.releases.rollout import roll_back
from mlcls.repository.manifest import EngineRecord, Manifest, verify_folder
from mlcls.repository.models import Repository
from mlcls.repository.publishing import add_version
from mlcls.repository.staging import RecalibratedVersion
from mlcls.repository.version_report import describe_versions
from support.repositories import add, snapshot

NAME = "animals-v2"
NOTE = {"objective": "best F1", "annotations": "val.txt", "date": "2026-01-02T03:04:05+00:00"}
NEW = (0.125, 0.5, 0.75)


@pytest.fixture
def root(root: Path, custom_spec: ModelSpec) -> Path:
    """A repository with one version, which has two engines."""
    add(root, custom_spec)
    (root.parent / "half.onnx").write_text("a graph of half the size")
    half = EngineRecord("model_fp16.onnx", "fp16", {}, {"mlcls": "0"}, gate=({"passed": True},))
    Repository(root).active(NAME).add_engine(root.parent / "half.onnx", half)
    return root


def publish(root: Path, **options: Any) -> rollout.Rollout:
    return rollout.publish(
        Repository(root),
        RecalibratedVersion(Repository(root).version(NAME, options.pop("base", 1)), NEW, NOTE),
        keep=None,
        **options,
    )


def test_calibrated_version(root: Path, custom_spec: ModelSpec, capsys: pytest.CaptureFixture[str]) -> None:
    old = snapshot(root / f"{NAME}_engine" / "1")
    assert publish(root) == rollout.Rollout(NAME, 2, 1, 2)
    spec = Repository(root).active(NAME).spec
    assert spec.thresholds == NEW
    assert spec.labels == custom_spec.labels
    assert Repository(root).version(NAME, 1).spec == custom_spec
    assert snapshot(root / f"{NAME}_engine" / "1") == old
    assert main(["repository", "--repository", str(root)]) == 0  # writes those of the official models too
    assert main(["repository", "--check", "--repository", str(root)]) == 0
    for suffix, folder in Repository(root).version(NAME, 2).folders.items():
        manifest = verify_folder(folder, f"{NAME}{suffix}_2")
        assert manifest.calibration == (NOTE if suffix == "_postprocess" else None)
    engine = Repository(root).version(NAME, 2).folders["_engine"]
    assert [record.file for record in Manifest.read(engine).engines] == ["model.onnx", "model_fp16.onnx"]
    assert Manifest.read(engine).engine("model_fp16.onnx").gate == ({"passed": True},)
    assert (engine / "model.onnx").samefile(root / f"{NAME}_engine" / "1" / "model.onnx")
    assert [report["calibration"] for report in describe_versions(Repository(root), NAME)] == [None, NOTE]
    capsys.readouterr()
    assert main(["versions", NAME, "--repository", str(root)]) == 0
    assert [line.endswith("best F1") for line in capsys.readouterr().out.splitlines()] == [False, False, True]
    roll_back(Repository(root), NAME)
    assert Repository(root).active(NAME).spec == custom_spec


def test_engine_built_for_a_calibrated_version(root: Path, tmp_path: Path) -> None:
    publish(root)
    before = snapshot(root / f"{NAME}_engine" / "1")
    (tmp_path / "model.onnx").write_text("another")
    Repository(root).version(NAME, 2).add_engine(tmp_path / "model.onnx", EngineRecord("model.onnx", "fp32", {}, {}))
    assert snapshot(root / f"{NAME}_engine" / "1") == before


def test_several_versions(root: Path) -> None:
    """None is removed, and one need not become active."""
    for _ in range(4):
        publish(root)
    assert publish(root, activate=False) == rollout.Rollout(NAME, 6, 5, 5)
    assert Repository(root).numbers(NAME) == [1, 2, 3, 4, 5, 6]
    assert Repository(root).active_number(NAME) == 5


def test_damaged_engine_is_not_vouched_for(root: Path) -> None:
    path = root / f"{NAME}_engine" / "1" / "model_fp16.onnx"
    path.write_text("x" * path.stat().st_size)
    before = snapshot(root)
    with pytest.raises(RepositoryError, match=r"model_fp16\.onnx is not the file that its manifest was written for"):
        publish(root)
    assert snapshot(root) == before | {".mlcls-lock": b""}


def test_wrong_base_or_thresholds(root: Path) -> None:
    with pytest.raises(RepositoryError, match="has no version 7; expected one of 1"):
        publish(root, base=7)
    base = Repository(root).version(NAME, 1)
    with folder_lock(root), pytest.raises(SpecError, match="expected one for each of the 3 labels, got 2"):
        add_version(Repository(root), RecalibratedVersion(base, [0.5, 0.5], NOTE))
    with pytest.raises(SpecError, match=r"thresholds\[1\]: expected a finite number, got nan"):
        RecalibratedVersion(base, [0.5, float("nan"), 0.5], NOTE)
    assert Repository(root).numbers(NAME) == [1]


@pytest.mark.parametrize("at", range(28))
def test_failure_leaves_the_old_thresholds(
    root: Path, custom_spec: ModelSpec, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever rename, link or file fails."""
    calls = 0

    def failing(function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == at + 1:
                raise OSError(28, "No space left on device")
            return function(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        for name in ("rename", "replace", "link"):
            patch.setattr(os, name, failing(getattr(os, name)))
        failed = False
        try:
            publish(root)
        except OSError:
            failed = True
    spec = Repository(root).active(NAME).spec
    assert failed == (calls > at)
    assert spec.thresholds == (custom_spec.thresholds if failed else NEW)
    assert not list(root.glob(".mlcls-staging-*"))
    publish(root)
    assert Repository(root).active(NAME).spec.thresholds == NEW
