"""`serving.json`, and the configurations that follow from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mlcls.errors import ConfigError
from mlcls.model.spec import ModelSpec
from mlcls.releases.rollout import publish, roll_back
from mlcls.repository.configurations import find_stale, render_files, require_fresh, write_configs
from mlcls.repository.manifest import EngineRecord
from mlcls.repository.models import Repository
from mlcls.repository.publishing import add_model
from mlcls.repository.settings import (
    DEFAULT_SETTINGS,
    TARGETS,
    ModelSettings,
    QueueSettings,
    ServingSettings,
    TuningRecord,
    read_settings,
    settings_path,
)
from mlcls.repository.staging import ConvertedVersion
from mlcls.repository.triton_config import parse_config

NAME = "animals-v2"
MANY = ServingSettings(3, 2, 1, 500, 5000)
TUNED = ModelSettings(16, {"embedded": MANY}, {"embedded": TuningRecord(8, "2026-01-02", "tuning_embedded.json")})


def parse_files(files: dict[str, str]) -> dict[str, Any]:
    return {path: parse_config(text) for path, text in files.items() if path.endswith(".pbtxt")}


def document() -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(TUNED.to_json())
    return parsed


def test_there_and_back() -> None:
    assert ModelSettings.from_json(TUNED.to_json()) == TUNED
    assert ModelSettings.from_json(ModelSettings().to_json()) == ModelSettings()
    assert TUNED.without_target("embedded") == ModelSettings(16)
    assert TUNED.without_target("embedded").with_target("embedded", MANY, TUNED.tuned["embedded"]) == TUNED


def test_queues_there_and_back() -> None:
    settings = ModelSettings(queue=QueueSettings(7, 2_000_000))
    assert ModelSettings.from_json(settings.to_json()) == settings
    assert "queue" not in json.loads(TUNED.to_json()), "the defaults are not written"
    partly = {**document(), "queue": {"max_queue_size": 7}}
    assert ModelSettings.from_json(json.dumps(partly)).queue == QueueSettings(7)


@pytest.mark.parametrize(
    ("queue", "words"),
    [
        ({"max_queue_size": 0}, "queue.max_queue_size: expected a whole number from 1 to 100000, got 0"),
        ({"timeout_microseconds": 0.5}, "queue.timeout_microseconds: expected a whole number"),
        ({"size": 4}, "unknown key queue.size"),
        (4, "queue: expected an object"),
    ],
)
def test_wrong_queues(queue: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ModelSettings.from_json(json.dumps({**document(), "queue": queue}))


def test_queues_of_all_steps(custom_spec: ModelSpec) -> None:
    configs = parse_files(render_files(custom_spec, settings=ModelSettings(queue=QueueSettings(7, 2_000_000))))
    steps = {path: config for path, config in configs.items() if config.platform != "ensemble"}
    assert len(steps) >= 3
    for path, config in steps.items():
        policy = config.dynamic_batching.default_queue_policy
        assert (policy.max_queue_size, policy.default_timeout_microseconds) == (7, 2_000_000), path
        assert policy.allow_timeout_override


def test_a_file_without_newer_settings_is_read() -> None:
    older = document()
    del older["targets"]["embedded"]["engine_precision"]
    assert ModelSettings.from_json(json.dumps(older)) == TUNED


def test_no_file_means_the_defaults(tmp_path: Path) -> None:
    assert read_settings(tmp_path, NAME) == ModelSettings()
    assert ModelSettings().of("gpu") == ServingSettings(engine_queue_delay_microseconds=1000)


def edit(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def apply(document: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        for key in parents:
            document = document[key]
        if value is None:
            del document[last]
        else:
            document[last] = value

    return apply


KNOB = "targets.embedded."
WRONG: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "unknown key": (edit("threads", 1), "unknown key threads; expected one of images, max_batch_size"),
    "unknown target": (edit("targets.tpu", {}), "unknown key targets.tpu; expected one of cpu, embedded, gpu, int8"),
    "unknown knob": (edit(KNOB + "instances", 1), "unknown key targets.embedded.instances"),
    "missing knob": (edit(KNOB + "engine_threads", None), "targets.embedded.engine_threads is missing"),
    "missing targets": (edit("targets", None), "targets is missing"),
    "another version": (edit("schema_version", 2), "schema_version: expected 1, got 2"),
    "a truth for a version": (edit("schema_version", True), "schema_version: expected 1, got True"),
    "a text": (edit(KNOB + "engine_instances", "2"), "targets.embedded.engine_instances: expected a whole number"),
    "a fraction": (edit(KNOB + "engine_instances", 2.0), "expected a whole number from 1 to 256, got 2.0"),
    "a truth": (edit(KNOB + "engine_instances", True), "expected a whole number from 1 to 256, got True"),
    "none": (edit(KNOB + "preprocess_instances", 0), "preprocess_instances: expected a whole number from 1 to 256"),
    "a long delay": (edit(KNOB + "engine_queue_delay_microseconds", 10_001), "from 0 to 10000, got 10001"),
    "negative": (edit(KNOB + "engine_threads", -1), "from 0 to 1024, got -1"),
    "a large batch": (edit("max_batch_size", 33), "max_batch_size: expected a whole number from 8 to 32, got 33"),
    "no batch": (edit("max_batch_size", "32"), "max_batch_size: expected a whole number"),
    "targets as a list": (edit("targets", []), "targets: expected an object, got []"),
    "a target as a number": (edit("targets.embedded", 1), "targets.embedded: expected an object, got 1"),
    "no cores": (edit(KNOB + "tuned.cores", 0), "targets.embedded.cores: expected a whole number"),
    "a date": (edit(KNOB + "tuned.date", 5), "targets.embedded.date: expected a non-empty string, got 5"),
    "a precision": (edit(KNOB + "engine_precision", "f16"), "engine_precision: expected one of f32, bf16, got 'f16'"),
    "unknown key of the record": (edit(KNOB + "tuned.by", "me"), "unknown key tuned.by"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_files(tmp_path: Path, name: str) -> None:
    change, expected = WRONG[name]
    broken = document()
    change(broken)
    path = settings_path(tmp_path, NAME)
    path.parent.mkdir()
    path.write_text(json.dumps(broken))
    with pytest.raises(ConfigError) as raised:
        read_settings(tmp_path, NAME)
    assert expected in str(raised.value)
    assert str(raised.value).startswith(f"{path}: ")


@pytest.mark.parametrize("text", ["", "{", "[]", "1", '{"schema_version": ' + "9" * 5000 + "}"])
def test_no_settings_at_all(tmp_path: Path, text: str) -> None:
    path = settings_path(tmp_path, NAME)
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(ConfigError, match="expected"):
        read_settings(tmp_path, NAME)


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_triton_s_own_backends_take_no_threads(target: Any) -> None:
    with pytest.raises(ConfigError, match=rf"{target}\.engine_threads: expected 0, got 1"):
        ModelSettings(targets={target: MANY})


@pytest.mark.parametrize("target", ["cpu", "int8", "gpu"])
def test_only_the_embedded_target_takes_a_precision(target: Any) -> None:
    with pytest.raises(ConfigError, match=rf"{target}\.engine_precision: expected 'f32', got 'bf16'"):
        ModelSettings(targets={target: ServingSettings(engine_precision="bf16")})


def test_a_precision_reaches_the_engine_s_configuration(custom_spec: ModelSpec) -> None:
    settings = ModelSettings(targets={"embedded": ServingSettings(engine_precision="bf16")})
    engine = parse_files(render_files(custom_spec, settings=settings))[f"{NAME}_engine/config.pbtxt"]
    assert engine.parameters["precision"].string_value == "bf16"
    assert str(settings.of("embedded")).endswith(", bf16")


def test_settings_of_one_target_leave_the_others_alone(custom_spec: ModelSpec) -> None:
    plain = parse_files(render_files(custom_spec))
    tuned = parse_files(render_files(custom_spec, settings=ModelSettings(targets={"embedded": MANY})))
    preprocess = tuned[f"{NAME}_preprocess/config.pbtxt"]
    assert preprocess.instance_group[0].count == 3
    assert preprocess.dynamic_batching.max_queue_delay_microseconds == 500
    engine = tuned[f"{NAME}_engine/config.pbtxt"]
    assert engine.instance_group[0].count == 2
    assert engine.dynamic_batching.max_queue_delay_microseconds == 5000
    assert engine.parameters["threads"].string_value == "1"
    for target in TARGETS[1:]:
        assert tuned[f"{NAME}_engine/configs/{target}.pbtxt"] == plain[f"{NAME}_engine/configs/{target}.pbtxt"]
        # Triton takes config.pbtxt if a target has no configuration of its own
        assert tuned[f"{NAME}_preprocess/configs/{target}.pbtxt"] == plain[f"{NAME}_preprocess/config.pbtxt"]
    assert not plain[f"{NAME}_engine/config.pbtxt"].parameters


def test_settings_of_another_target_than_the_default(custom_spec: ModelSpec) -> None:
    settings = ModelSettings(targets={"gpu": msgspec.structs.replace(MANY, engine_threads=0)})
    plain = render_files(custom_spec)
    tuned = render_files(custom_spec, settings=settings)
    changed = {path for path in tuned if tuned[path] != plain.get(path)}
    assert changed == {f"{NAME}_engine/configs/gpu.pbtxt", f"{NAME}_preprocess/configs/gpu.pbtxt"}


def test_defaults_by_name_change_nothing(custom_spec: ModelSpec) -> None:
    settings = ModelSettings(targets=dict(DEFAULT_SETTINGS))
    assert render_files(custom_spec, settings=settings) == render_files(custom_spec)


@pytest.mark.parametrize(("size", "warmups"), [(8, [1, 8]), (16, [1, 8, 16])])
def test_batch_size(custom_spec: ModelSpec, size: int, warmups: list[int]) -> None:
    configs = parse_files(render_files(custom_spec, settings=ModelSettings(size)))
    assert {config.max_batch_size for config in configs.values()} == {size}
    gpu = configs[f"{NAME}_engine/configs/gpu.pbtxt"]
    assert [warmup.batch_size for warmup in gpu.model_warmup] == warmups


def test_mismatch() -> None:
    assert TUNED.describe_mismatch("embedded", 8) is None
    assert TUNED.describe_mismatch("gpu", 2) is None
    text = TUNED.describe_mismatch("embedded", 2)
    assert text == "the settings of the target embedded were tuned for 8 cores, there are 2 here"


# --- in a repository


def add(root: Path, spec: ModelSpec) -> None:
    root.mkdir(exist_ok=True)
    weights = root.parent / "given.onnx"
    weights.write_text("a graph")
    add_model(Repository(root), ConvertedVersion(spec, weights, EngineRecord("model.onnx", "fp32", {}, {})))


def count_engines(root: Path, step: str) -> int:
    config = parse_config((root / step / "config.pbtxt").read_text(encoding="utf-8"))
    return int(config.instance_group[0].count)


def test_new_versions_and_imports_keep_the_settings(tmp_path: Path, custom_spec: ModelSpec) -> None:
    root = tmp_path / "models"
    add(root, custom_spec)
    settings_path(root, NAME).write_text(TUNED.to_json())
    assert find_stale(Repository(root), [custom_spec])
    write_configs(Repository(root), custom_spec)
    assert find_stale(Repository(root), [custom_spec]) == []
    weights = tmp_path / "next.onnx"
    weights.write_text("another graph")
    second = msgspec.structs.replace(custom_spec, labels=("x", "y"), thresholds=(0.1, 0.2))
    publish(Repository(root), ConvertedVersion(second, weights, EngineRecord("model.onnx", "fp32", {}, {})))
    assert count_engines(root, f"{NAME}_engine_2") == 2
    require_fresh(Repository(root).active(second.name))
    assert find_stale(Repository(root), [second]) == []
    roll_back(Repository(root), NAME)
    ensemble = parse_config((root / NAME / "config.pbtxt").read_text(encoding="utf-8"))
    assert ensemble.max_batch_size == 16
    require_fresh(Repository(root).active(custom_spec.name))

    fresh = tmp_path / "others"
    add(fresh, custom_spec)
    settings_path(fresh, NAME).write_text(TUNED.to_json())
    add(fresh, second)
    assert count_engines(fresh, f"{NAME}_engine") == 2
    require_fresh(Repository(fresh).active(second.name))


def test_an_import_over_wrong_settings_changes_nothing(tmp_path: Path, custom_spec: ModelSpec) -> None:
    root = tmp_path / "models"
    add(root, custom_spec)
    settings_path(root, NAME).write_text("{}")
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="is missing"):
        add(root, msgspec.structs.replace(custom_spec, labels=("x", "y"), thresholds=(0.1, 0.2)))
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
