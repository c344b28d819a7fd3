"""`serving.json`, the configurations that follow from it, and that both change together or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mlcls import cli
from mlcls.base.files import write_bytes
from mlcls.errors import ConfigError, RepositoryError
from mlcls.model.spec import ModelSpec
from mlcls.releases.rollout import publish, roll_back
from mlcls.repository import configurations, publishing
from mlcls.repository.configurations import find_stale, render_files, require_fresh, write_configs
from mlcls.repository.models import Repository
from mlcls.repository.publishing import add_version, change_settings
from mlcls.repository.settings import (
    DEFAULT_SETTINGS,
    TARGETS,
    ModelSettings,
    QueueSettings,
    ServingSettings,
    Target,
    TuningRecord,
    settings_path,
)
from mlcls.repository.triton_config import parse_config
from support.edited_documents import edit_document
from support.repositories import add, snapshot, stage

NAME = "animals-v2"
MANY = ServingSettings(3, 2, 1, 500, 5000)
RECORD = TuningRecord(8, "2026-01-02", "tuning_embedded.json")
TUNED = ModelSettings(max_batch_size=16).with_target("embedded", MANY, RECORD)
EVIDENCE: dict[str, bytes | None] = {"tuning_embedded.json": b"{}", "tuning_embedded.png": b"a picture"}


def tune(settings: ModelSettings) -> ModelSettings:
    return settings.with_target("embedded", MANY, RECORD)


def render(spec: ModelSpec, **settings: Any) -> dict[str, Any]:
    """The configurations of a model with some settings, by path."""
    files = render_files(spec, settings=ModelSettings(**settings))
    return {path: parse_config(text) for path, text in files.items() if path.endswith(".pbtxt")}


# --- the document


def test_there_and_back() -> None:
    assert ModelSettings.from_json(TUNED.to_json()) == TUNED
    assert json.loads(TUNED.to_json()) == {
        "schema_version": 1,
        "max_batch_size": 16,
        "targets": {
            "embedded": {
                "preprocess_instances": 3,
                "engine_instances": 2,
                "engine_threads": 1,
                "preprocess_queue_delay_microseconds": 500,
                "engine_queue_delay_microseconds": 5000,
                "engine_precision": "f32",
                "tuned": {"cores": 8, "date": "2026-01-02", "report": "tuning_embedded.json"},
            }
        },
    }
    assert TUNED.of("embedded") == MANY
    assert TUNED.tuned == {"embedded": RECORD}
    assert TUNED.without_target("embedded") == ModelSettings(max_batch_size=16)
    assert ModelSettings().of("gpu") == ServingSettings(engine_queue_delay_microseconds=1000)


def test_a_key_that_is_left_out_has_its_default() -> None:
    text = '{"schema_version": 1, "queue": {"max_queue_size": 7}, "targets": {"gpu": {"engine_instances": 2}}}'
    settings = ModelSettings.from_json(text)
    assert settings == ModelSettings(queue=QueueSettings(7), targets={"gpu": ServingSettings(engine_instances=2)})
    assert ModelSettings.from_json(settings.to_json()) == settings


def test_mismatch() -> None:
    assert TUNED.describe_mismatch("embedded", 8) is None
    assert TUNED.describe_mismatch("gpu", 2) is None
    text = TUNED.describe_mismatch("embedded", 2)
    assert text == "the settings of the target embedded were tuned for 8 cores, there are 2 here"


# Key, wrong value (`...` for a missing key) and the error's words: every limit, and one of each kind.
WRONG: list[tuple[str, Any, str]] = [
    ("schema_version", 2, "schema_version: expected 1, got 2"),
    ("threads", 1, "unknown key threads; expected only max_batch_size, queue, images, targets"),
    ("max_batch_size", 33, "max_batch_size: expected int <= 32, got 33"),
    ("max_batch_size", 7, "max_batch_size: expected int >= 8, got 7"),
    ("targets.tpu", {}, "a key of targets: expected one of embedded, cpu, int8, gpu, got 'tpu'"),
    ("targets.embedded.preprocess_instances", 0, "preprocess_instances: expected int >= 1, got 0"),
    ("targets.embedded.engine_instances", 257, "engine_instances: expected int <= 256, got 257"),
    ("targets.embedded.engine_queue_delay_microseconds", 10_001, "expected int <= 10000, got 10001"),
    ("targets.embedded.engine_threads", -1, "engine_threads: expected int >= 0, got -1"),
    ("targets.embedded.engine_precision", "f16", "engine_precision: expected one of f32, bf16, got 'f16'"),
    ("targets.embedded.tuned.cores", 0, "targets.embedded.tuned.cores: expected int >= 1, got 0"),
    ("targets.embedded.tuned.report", ..., "missing key targets.embedded.tuned.report"),
    ("targets.cpu", {"engine_threads": 1}, "targets.cpu.engine_threads: expected 0, got 1: it can be set for embedded"),
    ("targets.int8", {"engine_precision": "bf16"}, "targets.int8.engine_precision: expected 'f32', got 'bf16': it"),
    ("queue", {"max_queue_size": 0}, "queue.max_queue_size: expected int >= 1, got 0"),
    ("queue", {"size": 4}, "unknown key queue.size"),
]


@pytest.mark.parametrize(("key", "value", "words"), WRONG)
def test_wrong_files(tmp_path: Path, key: str, value: Any, words: str) -> None:
    path = settings_path(tmp_path, NAME)
    path.parent.mkdir()
    path.write_text(edit_document(TUNED.to_json(), key, value))
    with pytest.raises(ConfigError) as raised:
        Repository(tmp_path).settings(NAME)
    assert str(raised.value).startswith(f"{path}: {words.partition(':')[0] if key in words else ''}")
    assert words in str(raised.value)
    assert str(raised.value).endswith("; fix it, or restore the defaults: mlcls tune MODEL --reset.")


# --- the configurations


def test_queues_of_all_steps(custom_spec: ModelSpec) -> None:
    for path, config in render(custom_spec, queue=QueueSettings(7, 2_000_000)).items():
        policy = config.dynamic_batching.default_queue_policy
        if config.platform != "ensemble":
            assert (policy.max_queue_size, policy.default_timeout_microseconds) == (7, 2_000_000), path
            assert policy.allow_timeout_override


def test_settings_of_one_target_leave_the_others_alone(custom_spec: ModelSpec) -> None:
    embedded = msgspec.structs.replace(MANY, engine_precision="bf16")
    assert str(embedded).endswith("1 thread, delays 500 and 5000 us, bf16")
    plain, tuned = render(custom_spec), render(custom_spec, targets={"embedded": embedded})
    preprocess = tuned[f"{NAME}_preprocess/config.pbtxt"]
    assert preprocess.instance_group[0].count == 3
    assert preprocess.dynamic_batching.max_queue_delay_microseconds == 500
    engine = tuned[f"{NAME}_engine/config.pbtxt"]
    assert engine.instance_group[0].count == 2
    assert engine.dynamic_batching.max_queue_delay_microseconds == 5000
    assert engine.parameters["threads"].string_value == "1"
    assert engine.parameters["precision"].string_value == "bf16"
    for target in TARGETS[1:]:
        assert tuned[f"{NAME}_engine/configs/{target}.pbtxt"] == plain[f"{NAME}_engine/configs/{target}.pbtxt"]
        # Triton takes config.pbtxt if a target has no configuration of its own
        assert tuned[f"{NAME}_preprocess/configs/{target}.pbtxt"] == plain[f"{NAME}_preprocess/config.pbtxt"]
    assert not plain[f"{NAME}_engine/config.pbtxt"].parameters


def test_settings_of_another_target_than_the_default(custom_spec: ModelSpec) -> None:
    plain = render(custom_spec)
    tuned = render(custom_spec, targets={"gpu": ServingSettings(3, 2)})
    changed = {path for path in tuned if tuned[path] != plain.get(path)}
    assert changed == {f"{NAME}_engine/configs/gpu.pbtxt", f"{NAME}_preprocess/configs/gpu.pbtxt"}
    assert render(custom_spec, targets=dict(DEFAULT_SETTINGS)) == plain


@pytest.mark.parametrize(("size", "warmups"), [(8, [1, 8]), (16, [1, 8, 16])])
def test_batch_size(custom_spec: ModelSpec, size: int, warmups: list[int]) -> None:
    configs = render(custom_spec, max_batch_size=size)
    assert {config.max_batch_size for config in configs.values()} == {size}
    gpu = configs[f"{NAME}_engine/configs/gpu.pbtxt"]
    assert [warmup.batch_size for warmup in gpu.model_warmup] == warmups


# --- in a repository


def count_engines(root: Path, step: str) -> int:
    config = parse_config((root / step / "config.pbtxt").read_text(encoding="utf-8"))
    return int(config.instance_group[0].count)


def test_new_versions_and_imports_keep_the_settings(root: Path, custom_spec: ModelSpec) -> None:
    add(root, custom_spec)
    settings_path(root, NAME).write_text(TUNED.to_json())
    assert find_stale(Repository(root), [custom_spec])
    write_configs(Repository(root), custom_spec)
    assert not find_stale(Repository(root), [custom_spec])
    second = msgspec.structs.replace(custom_spec, labels=("x", "y"), thresholds=(0.1, 0.2))
    publish(Repository(root), stage(root, second))
    assert count_engines(root, f"{NAME}_engine_2") == 2
    require_fresh(Repository(root).active(NAME))
    assert not find_stale(Repository(root), [second])
    roll_back(Repository(root), NAME)
    ensemble = parse_config((root / NAME / "config.pbtxt").read_text(encoding="utf-8"))
    assert ensemble.max_batch_size == 16
    require_fresh(Repository(root).active(NAME))

    fresh = root.parent / "others"
    add(fresh, custom_spec)
    settings_path(fresh, NAME).write_text(TUNED.to_json())
    add(fresh, second)
    assert count_engines(fresh, f"{NAME}_engine") == 2
    require_fresh(Repository(fresh).active(NAME))


@pytest.fixture
def two_versions(root: Path, custom_spec: ModelSpec) -> Path:
    add(root, custom_spec)
    add_version(Repository(root), stage(root, custom_spec))
    return root


def test_all_versions_change(two_versions: Path, custom_spec: ModelSpec) -> None:
    repository, before = Repository(two_versions), snapshot(two_versions)
    changed = change_settings(repository, NAME, tune, EVIDENCE)
    assert repository.settings(NAME) == tune(ModelSettings())
    assert not find_stale(repository, [custom_spec])
    steps = {path.relative_to(two_versions).parts[0] for path in changed}
    assert steps == {f"{NAME}_{step}{number}" for step in ("preprocess", "engine") for number in ("", "_2")}
    assert (two_versions / NAME / "tuning_embedded.png").read_bytes() == b"a picture"
    change_settings(repository, NAME, lambda settings: settings.without_target("embedded"), dict.fromkeys(EVIDENCE))
    assert snapshot(two_versions) == before, "what only the other settings needed is gone"


@pytest.mark.parametrize("writes", range(9))
@pytest.mark.parametrize("fault", [OSError("disk full"), KeyboardInterrupt()])
def test_a_fault_leaves_all_as_it_was(
    two_versions: Path, monkeypatch: pytest.MonkeyPatch, writes: int, fault: BaseException
) -> None:
    """Whichever of the files it comes at."""
    before = snapshot(two_versions)
    left = [writes]

    def fail_after(path: Path, content: bytes) -> None:
        left[0] -= 1
        if left[0] == -1:
            raise fault
        write_bytes(path, content)

    monkeypatch.setattr(configurations, "write_bytes", fail_after)
    with pytest.raises(type(fault)):
        change_settings(Repository(two_versions), NAME, tune, EVIDENCE)
    assert snapshot(two_versions) == before


def test_a_killed_change_is_mended(two_versions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings without their configurations: not served, and written by the next command."""
    settings_path(two_versions, NAME).write_text(tune(ModelSettings()).to_json())
    with pytest.raises(RepositoryError, match=r"is stale: .* Run: mlcls repository"):
        require_fresh(Repository(two_versions).active(NAME))
    monkeypatch.setattr(configurations, "OFFICIAL_MODELS", {})
    assert cli.main(["repository", "--repository", str(two_versions)]) == 0
    require_fresh(Repository(two_versions).active(NAME))


@pytest.mark.parametrize(
    "change", [lambda root, _: change_settings(Repository(root), NAME, tune), add], ids=["change_settings", "add_model"]
)
def test_wrong_settings_are_not_replaced(
    two_versions: Path, custom_spec: ModelSpec, change: Callable[[Path, ModelSpec], object]
) -> None:
    publishing.remove_version(Repository(two_versions).version(NAME, 2))
    settings_path(two_versions, NAME).write_text("{}")
    before = snapshot(two_versions)
    with pytest.raises(ConfigError, match="schema_version: expected 1"):
        change(two_versions, custom_spec)
    assert snapshot(two_versions) == before


# --- mlcls tune --reset


def test_reset_of_one_target(two_versions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    repository, before = Repository(two_versions), snapshot(two_versions)

    def reset(target: Target) -> None:
        assert cli.main(["tune", NAME, "--reset", "--target", target, "--repository", str(two_versions)]) == 0

    change_settings(repository, NAME, lambda settings: settings.with_target("gpu", ServingSettings(5), None))
    change_settings(repository, NAME, tune, EVIDENCE)
    assert repository.settings(NAME).of("gpu").preprocess_instances == 5
    reset("gpu")
    assert repository.settings(NAME) == tune(ModelSettings())
    assert (two_versions / NAME / "tuning_embedded.json").is_file()
    reset("embedded")
    assert snapshot(two_versions) == before
    assert "default settings of the target embedded; 10 configurations changed" in capsys.readouterr().out


def test_reset_of_wrong_settings(
    two_versions: Path, custom_spec: ModelSpec, capsys: pytest.CaptureFixture[str]
) -> None:
    change_settings(Repository(two_versions), NAME, tune)
    settings_path(two_versions, NAME).write_text("{")
    assert cli.main(["tune", NAME, "--reset", "--repository", str(two_versions)]) == 0
    assert Repository(two_versions).settings(NAME) == ModelSettings()
    assert not find_stale(Repository(two_versions), [custom_spec])
    assert "with the settings of all targets" in capsys.readouterr().out
