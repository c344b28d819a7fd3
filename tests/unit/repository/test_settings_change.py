"""A model's settings change together with its configurations, or not at all."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from mlcls import cli
from mlcls.base.files import write_bytes
from mlcls.errors import ConfigError, RepositoryError
from mlcls.model.spec import ModelSpec
from mlcls.repository import configurations, publishing
from mlcls.repository.configurations import find_stale, require_fresh
from mlcls.repository.manifest import EngineRecord
from mlcls.repository.models import Repository
from mlcls.repository.publishing import add_model, add_version, change_settings
from mlcls.repository.settings import ModelSettings, ServingSettings, TuningRecord, read_settings, settings_path
from mlcls.repository.staging import ConvertedVersion

NAME = "animals-v2"
MANY = ServingSettings(3, 2, 1, 0, 1000)
EVIDENCE: dict[str, bytes | None] = {"tuning_embedded.json": b"{}", "tuning_embedded.png": b"a picture"}


@pytest.fixture
def root(tmp_path: Path, custom_spec: ModelSpec) -> Path:
    """A model of two versions."""
    root = tmp_path / "models"
    root.mkdir()
    for version in (1, 2):
        weights = tmp_path / "given.onnx"
        weights.write_text(f"graph {version}")
        record = EngineRecord("model.onnx", "fp32", {}, {})
        if version == 1:
            add_model(Repository(root), ConvertedVersion(custom_spec, weights, record))
        else:
            add_version(Repository(root), ConvertedVersion(custom_spec, weights, record))
    return root


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def tune(settings: ModelSettings) -> ModelSettings:
    return settings.with_target("embedded", MANY, TuningRecord(2, "2026-01-02", "tuning_embedded.json"))


def test_all_versions_change(root: Path, custom_spec: ModelSpec) -> None:
    before = snapshot(root)
    changed = change_settings(Repository(root), NAME, tune, EVIDENCE)
    assert read_settings(root, NAME) == tune(ModelSettings())
    assert find_stale(Repository(root), [custom_spec]) == []
    steps = {path.relative_to(root).parts[0] for path in changed}
    assert steps == {f"{NAME}_{step}{number}" for step in ("preprocess", "engine") for number in ("", "_2")}
    assert (root / NAME / "tuning_embedded.png").read_bytes() == b"a picture"
    change_settings(
        Repository(root), NAME, lambda settings: settings.without_target("embedded"), dict.fromkeys(EVIDENCE)
    )
    assert snapshot(root) == before, "what only the other settings needed is gone"


def test_other_targets_keep_their_settings(root: Path) -> None:
    change_settings(Repository(root), NAME, lambda settings: settings.with_target("int8", ServingSettings(5), None))
    change_settings(Repository(root), NAME, tune)
    settings = read_settings(root, NAME)
    assert settings.of("int8").preprocess_instances == 5
    assert settings.of("embedded") == MANY


@pytest.mark.parametrize("writes", range(9))
@pytest.mark.parametrize("fault", [OSError("disk full"), KeyboardInterrupt()])
def test_a_fault_leaves_all_as_it_was(
    root: Path, monkeypatch: pytest.MonkeyPatch, writes: int, fault: BaseException
) -> None:
    """Whichever of the files it comes at."""
    before = snapshot(root)
    left = [writes]

    def fail_after(path: Path, content: bytes) -> None:
        left[0] -= 1
        if left[0] == -1:
            raise fault
        write_bytes(path, content)

    monkeypatch.setattr(publishing, "write_bytes", fail_after)
    monkeypatch.setattr(configurations, "write_text", lambda path, text: fail_after(path, text.encode()))
    with pytest.raises(type(fault)):
        change_settings(Repository(root), NAME, tune, EVIDENCE)
    assert snapshot(root) == before


def test_a_killed_change_is_mended(
    root: Path, custom_spec: ModelSpec, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings without their configurations: not served, and written by the next command."""
    settings_path(root, NAME).write_text(tune(ModelSettings()).to_json())
    with pytest.raises(RepositoryError, match=r"is stale: .* Run: mlcls repository"):
        require_fresh(Repository(root).active(custom_spec.name))
    monkeypatch.setattr(configurations, "OFFICIAL_MODELS", {})
    assert cli.main(["repository", "--repository", str(root)]) == 0
    require_fresh(Repository(root).active(custom_spec.name))
    capsys.readouterr()


def test_wrong_settings_are_not_replaced(root: Path) -> None:
    settings_path(root, NAME).write_text("{}")
    before = snapshot(root)
    with pytest.raises(ConfigError, match="is missing"):
        change_settings(Repository(root), NAME, tune)
    assert snapshot(root) == before


# --- mlcls tune --reset


def test_reset(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(root)
    change_settings(Repository(root), NAME, tune, EVIDENCE)
    assert cli.main(["tune", NAME, "--reset", "--repository", str(root)]) == 0
    assert snapshot(root) == before
    assert "default settings of the target embedded; 10 configurations changed" in capsys.readouterr().out


def test_reset_of_one_target(root: Path) -> None:
    change_settings(Repository(root), NAME, lambda settings: settings.with_target("gpu", ServingSettings(5), None))
    change_settings(Repository(root), NAME, tune, EVIDENCE)
    assert cli.main(["tune", NAME, "--reset", "--target", "gpu", "--repository", str(root)]) == 0
    assert read_settings(root, NAME) == tune(ModelSettings())
    assert (root / NAME / "tuning_embedded.json").is_file()


def test_reset_of_wrong_settings(root: Path, custom_spec: ModelSpec, capsys: pytest.CaptureFixture[str]) -> None:
    change_settings(Repository(root), NAME, tune)
    settings_path(root, NAME).write_text("{")
    assert cli.main(["tune", NAME, "--reset", "--repository", str(root)]) == 0
    assert read_settings(root, NAME) == ModelSettings()
    assert find_stale(Repository(root), [dataclasses.replace(custom_spec)]) == []
    assert "with the settings of all targets" in capsys.readouterr().out
