"""The model repository as Triton sees it: each configuration parses, and each ensemble fits together on each target.

Nothing here asks the generator: the walk reads files, and compares them with each other and with the served contract.
The walk itself is tested with planted faults in the repository of a custom model.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb2

from mlcls.model.catalog import OFFICIAL_MODELS, official_spec
from mlcls.model.spec import ModelSpec
from mlcls.releases.rollout import publish, roll_back
from mlcls.repository.configurations import expected_specs, find_stale, write_configs
from mlcls.repository.manifest import EngineRecord
from mlcls.repository.models import Repository
from mlcls.repository.staging import ConvertedVersion

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = ROOT / "model_repository"
BACKENDS = ROOT / "python_backends"

# Which configuration of a model Triton takes on each target, if the model has it.
TARGETS = {"embedded": None, **{target: f"configs/{target}.pbtxt" for target in ("cpu", "int8", "gpu")}}

# Backend, instance kind and model file of the engine on each target.
ENGINES = {
    "embedded": ("mlcls_engine", "KIND_CPU", "model.onnx"),
    "cpu": ("onnxruntime", "KIND_CPU", "model.onnx"),
    "int8": ("mlcls_engine", "KIND_CPU", "model.int8.onnx"),
    "gpu": ("tensorrt", "KIND_GPU", "model.plan"),
}

Tensors = dict[str, tuple[str, tuple[int, ...]]]


def read_config(path: Path) -> Any:
    """Read a configuration; raise a ParseError for a field that Triton does not know."""
    return text_format.Parse(path.read_text(encoding="utf-8"), pb2.ModelConfig())


def read_model(root: Path, model: str, target: str) -> Any:
    special = TARGETS[target]
    if special and (root / model / special).is_file():
        return read_config(root / model / special)
    return read_config(root / model / "config.pbtxt")


def describe(tensors: Any) -> Tensors:
    """Return the type and dims of each tensor."""
    return {tensor.name: (pb2.DataType.Name(tensor.data_type), tuple(tensor.dims)) for tensor in tensors}


def walk_repository(root: Path) -> Iterator[str]:
    """Yield a text for each fault of a repository."""
    models = sorted(path.parent.name for path in root.glob("*/config.pbtxt"))
    for path in sorted(root.rglob("*.pbtxt")):
        folder = path.relative_to(root).parts[0]
        try:
            config = read_config(path)
        except text_format.ParseError as error:
            yield f"{path}: {error}"
            return
        if config.name != folder:
            yield f"{path}: is named {config.name}"
    ensembles = [name for name in models if read_config(root / name / "config.pbtxt").platform == "ensemble"]
    used = set(ensembles)
    for ensemble in ensembles:
        for target in TARGETS:
            config = read_model(root, ensemble, target)
            used.update(step.model_name for step in config.ensemble_scheduling.step)
            for finding in walk_ensemble(root, config, target):
                yield f"{ensemble}, {target}: {finding}"
    yield from (f"{name}: is a step of no ensemble" for name in models if name not in used)
    if not ensembles:
        yield "no ensemble"


def walk_ensemble(root: Path, ensemble: Any, target: str) -> Iterator[str]:
    """Follow the tensors of an ensemble from step to step."""
    known = describe(ensemble.input)
    if known != {"image": ("TYPE_STRING", (1,))}:
        yield f"takes {known}"
    outputs = describe(ensemble.output)
    if list(outputs) != ["scores", "result", "status"]:
        yield f"gives {list(outputs)}"
    yield from check_labels(root / ensemble.name, ensemble)
    steps = list(ensemble.ensemble_scheduling.step)
    served = list(ensemble.version_policy.specific.versions)
    if len(served) != 1:
        yield f"serves the versions {served}"
        return
    number = "" if served == [1] else f"_{served[0]}"
    names = [f"{ensemble.name}{suffix}{number}" for suffix in ("_preprocess", "_engine", "_postprocess")]
    if [step.model_name for step in steps] != names:
        yield f"has the steps {[step.model_name for step in steps]}"
    produced: Tensors = {}
    for step in steps:
        if not (root / step.model_name / "config.pbtxt").is_file():
            yield f"the step {step.model_name} has no folder"
            return
        model = read_model(root, step.model_name, target)
        if step.model_version != served[0]:
            yield f"{model.name}: version {step.model_version}, not {served[0]}"
        if model.max_batch_size != ensemble.max_batch_size:
            yield f"{model.name}: max_batch_size {model.max_batch_size}, not {ensemble.max_batch_size}"
        inputs, produced = describe(model.input), {}
        if set(step.input_map) != set(inputs):
            yield f"{model.name}: inputs {sorted(inputs)}, mapped {sorted(step.input_map)}"
        for name, tensor in step.input_map.items():
            if known.get(tensor) != inputs.get(name):
                yield f"{model.name}: takes {name} as {inputs.get(name)}, {tensor} is {known.get(tensor)}"
        given = describe(model.output)
        if set(step.output_map) != set(given):
            yield f"{model.name}: outputs {sorted(given)}, mapped {sorted(step.output_map)}"
        for name, tensor in step.output_map.items():
            if tensor in known:
                yield f"{model.name}: gives {tensor} once more"
            produced[tensor] = given.get(name, ("", ()))
        known |= produced
        if any(tensor.optional for tensor in model.input):
            yield f"{model.name}: has an optional input"
        yield from (f"{model.name}: {finding}" for finding in check_step(root / step.model_name, model, target))
    for name, tensor in outputs.items():
        if produced.get(name) != tensor:
            yield f"gives {name} as {tensor}, its last step as {produced.get(name)}"


def check_step(folder: Path, model: Any, target: str) -> Iterator[str]:
    """Check the batching, queue, instances, backend and warm-up of one step."""
    role = re.sub(r"_\d+$", "", folder.name).rsplit("_", 1)[1]
    backend, kind, file = ENGINES[target] if role == "engine" else (f"mlcls_{role}", "KIND_CPU", "")
    if (model.backend, model.default_model_filename) != (backend, file):
        yield f"backend {model.backend!r} with {model.default_model_filename!r}"
    if backend.startswith("mlcls_") and not (BACKENDS / backend / "model.py").is_file():
        yield f"backend {backend} does not exist"
    kinds = [pb2.ModelInstanceGroup.Kind.Name(group.kind) for group in model.instance_group]
    if kinds != [kind] or model.instance_group[0].count < 1:
        yield f"instances {kinds}"
    accelerators = model.optimization.execution_accelerators
    names = [accelerator.name for accelerator in accelerators.cpu_execution_accelerator]
    if names != (["openvino"] if backend == "onnxruntime" else []) or accelerators.gpu_execution_accelerator:
        yield f"accelerators {names}"
    if not 8 <= model.max_batch_size <= 128:
        yield f"max_batch_size {model.max_batch_size}"
    if not model.HasField("dynamic_batching"):
        yield "no dynamic batching"
    batching = model.dynamic_batching
    queue = batching.default_queue_policy
    if not model.max_batch_size <= queue.max_queue_size <= 1024:
        yield f"max_queue_size {queue.max_queue_size}"
    if not 0 < queue.default_timeout_microseconds <= 60_000_000 or queue.timeout_action != pb2.ModelQueuePolicy.REJECT:
        yield f"queue timeout {queue.default_timeout_microseconds} microseconds"
    if batching.priority_levels or batching.preserve_ordering:
        yield "priorities or preserved order"
    if not batching.max_queue_delay_microseconds <= 10_000:
        yield f"max_queue_delay_microseconds {batching.max_queue_delay_microseconds}"
    if role == "engine":
        yield from check_warmup(model)
    yield from check_labels(folder, model)


def check_warmup(model: Any) -> Iterator[str]:
    sizes = [warmup.batch_size for warmup in model.model_warmup]
    if len(sizes) < 2 or sizes != sorted(set(sizes)) or sizes[0] != 1 or sizes[-1] > model.max_batch_size:
        yield f"warm-up at {sizes}"
    if model.backend == "tensorrt" and sizes[-1:] != [model.max_batch_size]:
        yield f"warm-up at {sizes}, not at the largest batch"
    for warmup in model.model_warmup:
        inputs = {name: (pb2.DataType.Name(item.data_type), tuple(item.dims)) for name, item in warmup.inputs.items()}
        if inputs != describe(model.input) or not all(item.zero_data for item in warmup.inputs.values()):
            yield f"warm-up with {inputs}"


def check_labels(folder: Path, model: Any) -> Iterator[str]:
    """Check that only `scores` has labels, and as many lines as dims."""
    for tensor in model.output:
        if (tensor.name == "scores") != bool(tensor.label_filename):
            yield f"{tensor.name} has the labels {tensor.label_filename!r}"
    for tensor in model.output:
        if tensor.label_filename:
            path = folder / tensor.label_filename
            if not path.is_file():
                yield f"{tensor.label_filename} is missing"
                continue
            lines = path.read_bytes().decode().split("\n")
            if lines.pop() or len(lines) != tensor.dims[0] or not all(line.strip() for line in lines):
                yield f"{tensor.label_filename} has {len(lines)} lines for the dims {list(tensor.dims)}"
            if len(set(lines)) != len(lines) or any("\r" in line for line in lines):
                yield f"{tensor.label_filename} has a label twice or a carriage return"


# --- the committed repository


def test_committed_ensembles() -> None:
    suffixes = ["/config", "_preprocess/config", "_postprocess/config", "_engine/config"]
    suffixes += [f"_engine/configs/{target}" for target in ("cpu", "int8", "gpu")]
    expected = {f"{name}{suffix}.pbtxt" for name in OFFICIAL_MODELS for suffix in suffixes}
    assert expected <= {path.relative_to(COMMITTED).as_posix() for path in COMMITTED.rglob("*.pbtxt")}
    assert list(walk_repository(COMMITTED)) == []
    assert not find_stale(Repository(COMMITTED), expected_specs(Repository(COMMITTED)))


@pytest.mark.parametrize("name", OFFICIAL_MODELS)
def test_official_models_have_their_dims(name: str) -> None:
    """Those of the catalog, or those of the imported model if this checkout has one."""
    imported = Repository(COMMITTED).is_imported(name)
    spec = Repository(COMMITTED).active(name).spec if imported else official_spec(name)
    pixels = ("TYPE_UINT8", (spec.transform.height, spec.transform.width, 3))
    logits = ("TYPE_FP32", (spec.num_labels,))
    for target in TARGETS:
        engine = read_model(COMMITTED, f"{name}_engine", target)
        assert describe(engine.input) == {"pixels": pixels}
        assert describe(engine.output) == {"logits": logits}
    labels = (COMMITTED / name / "labels.txt").read_text(encoding="utf-8")
    assert labels == (COMMITTED / f"{name}_postprocess" / "labels.txt").read_text(encoding="utf-8")
    assert tuple(labels.splitlines()) == spec.labels


# --- a custom model, and that the walk finds what is wrong


@pytest.fixture
def custom_repository(tmp_path: Path, custom_spec: ModelSpec) -> Path:
    root = tmp_path / "models"
    write_configs(Repository(root), custom_spec)
    return root


def test_custom_model(custom_repository: Path, custom_spec: ModelSpec) -> None:
    assert list(walk_repository(custom_repository)) == []
    for target in TARGETS:
        engine = read_model(custom_repository, "animals-v2_engine", target)
        assert describe(engine.input) == {"pixels": ("TYPE_UINT8", (96, 64, 3))}
        assert describe(engine.output) == {"logits": ("TYPE_FP32", (3,))}
    assert (custom_repository / "animals-v2" / "labels.txt").read_text(encoding="utf-8") == 'cat\n犬\na "fox"\n'
    assert not find_stale(Repository(custom_repository), [custom_spec])


def test_versions_of_a_model(tmp_path: Path, custom_spec: ModelSpec) -> None:
    """Each version's steps fit its own model, and the ensemble fits whichever version is active."""
    root = tmp_path / "models"
    root.mkdir()
    second = msgspec.structs.replace(
        custom_spec,
        labels=("x", "y"),
        thresholds=(0.1, 0.2),
        transform=msgspec.structs.replace(custom_spec.transform, height=32, width=48),
    )
    for spec in (custom_spec, second):
        weights = tmp_path / "model.onnx"
        weights.write_text("a graph")
        publish(Repository(root), ConvertedVersion(spec, weights, EngineRecord("model.onnx", "fp32", {}, {})))
    names = [f"animals-v2{suffix}" for suffix in ("_engine", "_postprocess", "_preprocess")]
    assert list(walk_repository(root)) == [f"{name}: is a step of no ensemble" for name in names]
    engine = read_model(root, "animals-v2_engine_2", "gpu")
    assert describe(engine.input) == {"pixels": ("TYPE_UINT8", (32, 48, 3))}
    assert describe(engine.output) == {"logits": ("TYPE_FP32", (2,))}
    roll_back(Repository(root), "animals-v2")
    assert list(walk_repository(root)) == [f"{name}_2: is a step of no ensemble" for name in names]
    assert describe(read_model(root, "animals-v2_engine", "gpu").output) == {"logits": ("TYPE_FP32", (3,))}


def replace(path: str, old: str, new: str) -> Callable[[Path], object]:
    """A fault planted into one file."""

    def apply(root: Path) -> None:
        text = (root / path).read_text(encoding="utf-8")
        assert old in text
        (root / path).write_text(text.replace(old, new, 1), encoding="utf-8")

    return apply


def edit(path: str, change: Callable[[Any], object]) -> Callable[[Path], object]:
    """A fault planted into one configuration."""

    def apply(root: Path) -> None:
        config = read_config(root / path)
        change(config)
        (root / path).write_text(text_format.MessageToString(config, as_utf8=True), encoding="utf-8")

    return apply


ENSEMBLE = "animals-v2/config.pbtxt"
PREPROCESS = "animals-v2_preprocess/config.pbtxt"
ENGINE = "animals-v2_engine/config.pbtxt"
CPU = "animals-v2_engine/configs/cpu.pbtxt"
INT8 = "animals-v2_engine/configs/int8.pbtxt"
GPU = "animals-v2_engine/configs/gpu.pbtxt"
POSTPROCESS = "animals-v2_postprocess/config.pbtxt"


# A fault of each kind, and what the walk says of it.
FAULTS: list[tuple[Callable[[Path], object], str]] = [
    (replace(GPU, "max_batch_size", "maximum_batch_size"), "no field named"),
    (edit(CPU, lambda config: setattr(config, "name", "animals")), "is named animals"),
    (edit(ENSEMBLE, lambda config: setattr(config, "platform", "")), "no ensemble"),
    (lambda root: shutil.rmtree(root / "animals-v2_engine"), "has no folder"),
    (edit(ENSEMBLE, lambda config: config.ensemble_scheduling.step.reverse()), "has the steps"),
    (edit(ENSEMBLE, lambda config: setattr(config.ensemble_scheduling.step[1], "model_version", -1)), "version -1"),
    (edit(ENSEMBLE, lambda config: config.ClearField("version_policy")), "serves the versions []"),
    (
        edit(ENSEMBLE, lambda config: config.ensemble_scheduling.step[2].input_map.pop("decode_status")),
        "inputs ['decode_status', 'logits'], mapped ['logits']",
    ),
    (
        edit(ENSEMBLE, lambda config: config.ensemble_scheduling.step[0].output_map.pop("decode_status")),
        "outputs ['decode_status', 'pixels'], mapped ['pixels']",
    ),
    (
        edit(ENSEMBLE, lambda config: config.ensemble_scheduling.step[1].output_map.update(logits="image")),
        "gives image once more",
    ),
    (edit(ENSEMBLE, lambda config: config.output[0].dims.__setitem__(0, 80)), "its last step as"),
    (edit(POSTPROCESS, lambda config: setattr(config.input[0], "optional", True)), "has an optional input"),
    (edit(PREPROCESS, lambda config: config.output[0].dims.reverse()), "takes pixels as"),
    (edit(GPU, lambda config: setattr(config.output[0], "data_type", pb2.TYPE_FP16)), "takes logits as"),
    (edit(GPU, lambda config: setattr(config, "max_batch_size", 16)), "max_batch_size 16, not"),
    (edit(CPU, lambda config: config.ClearField("dynamic_batching")), "no dynamic batching"),
    (edit(GPU, lambda config: config.ClearField("model_warmup")), "warm-up at []"),
    (edit(GPU, lambda config: config.model_warmup.pop()), "not at the largest batch"),
    (edit(ENGINE, lambda config: config.model_warmup[0].inputs.pop("pixels")), "warm-up with {}"),
    (edit(INT8, lambda config: setattr(config, "default_model_filename", "model.onnx")), "with 'model.onnx'"),
    (lambda root: (root / INT8).unlink(), "with 'model.onnx'"),
    (edit(CPU, lambda config: config.ClearField("optimization")), "accelerators []"),
    (edit(GPU, lambda config: setattr(config.instance_group[0], "kind", 2)), "instances ['KIND_CPU']"),
    (lambda root: (root / "animals-v2" / "labels.txt").unlink(), "labels.txt is missing"),
    (replace("animals-v2_postprocess/labels.txt", "cat\n", ""), "has 2 lines for the dims [3]"),
    (edit(ENSEMBLE, lambda config: config.output[0].ClearField("label_filename")), "scores has the labels ''"),
    (lambda root: shutil.copytree(root / "animals-v2_engine", root / "animals-v1_engine"), "is a step of no ensemble"),
]


@pytest.mark.parametrize(("plant", "words"), FAULTS, ids=[words for _, words in FAULTS])
def test_planted_fault(
    custom_repository: Path, custom_spec: ModelSpec, plant: Callable[[Path], object], words: str
) -> None:
    plant(custom_repository)
    assert words in "\n".join(walk_repository(custom_repository))
    assert find_stale(Repository(custom_repository), [custom_spec])


def test_carriage_returns(custom_repository: Path) -> None:
    """Triton would make them part of the labels."""
    replace("animals-v2/labels.txt", "cat\n", "cat\r\n")(custom_repository)
    assert list(walk_repository(custom_repository))
