"""Build Triton's model configurations from a `ModelSpec` and settings, as protobuf and never as string templates.

A served model is four Triton models: the ensemble `NAME` and its steps `NAME_preprocess`, `NAME_engine` and
`NAME_postprocess`. Triton has one configuration for all versions of a model and, when one is added, reloads all of
them; so each later version has its own steps, `NAME_engine_2` for example, and a switch changes one file only: the
ensemble's configuration, which names the steps of one version. The engine differs between the targets, and preprocess
differs if their `ServingSettings` do; Triton uses `configs/TARGET.pbtxt` if it exists (`--model-config-name`), else
`config.pbtxt`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

from mlcls.errors import MissingExtraError
from mlcls.images.settings import DEFAULT_IMAGE_SETTINGS
from mlcls.model.contract import TENSORS
from mlcls.model.spec import ModelSpec
from mlcls.repository.settings import DEFAULT_MODEL_SETTINGS, TARGETS, ModelSettings, QueueSettings, Target

if TYPE_CHECKING:
    from tritonclient.grpc.model_config_pb2 import ModelConfig
from mlcls.repository.names import (
    ENGINE_SUFFIX,
    FIRST_VERSION,
    IMAGES_PARAMETER,
    INT8_FILE,
    LABELS_FILE,
    ONNX_FILE,
    PLAN_FILE,
    POSTPROCESS_SUFFIX,
    PRECISION_PARAMETER,
    PREPROCESS_SUFFIX,
    THREADS_PARAMETER,
    ensemble_labels_file,
    step_name,
)


@dataclasses.dataclass(frozen=True)
class EngineTarget:
    """How the engine runs on one target.

    Attributes:
        backend: Triton backend.
        model_file: File in the version folder.
        kind: Triton's instance kind.
        warmup_batch_sizes: Batch sizes that run once before the model is ready; on a GPU, the largest batch does too.
        cpu_accelerator: Execution accelerator of the onnxruntime backend.
    """

    backend: str
    model_file: str
    kind: Literal["KIND_CPU", "KIND_GPU"]
    warmup_batch_sizes: tuple[int, ...]
    cpu_accelerator: str | None = None


ENGINE_TARGETS: Final[Mapping[Target, EngineTarget]] = {
    "embedded": EngineTarget("mlcls_engine", ONNX_FILE, "KIND_CPU", (1, 2)),
    "cpu": EngineTarget("onnxruntime", ONNX_FILE, "KIND_CPU", (1, 2), cpu_accelerator="openvino"),
    "int8": EngineTarget("mlcls_engine", INT8_FILE, "KIND_CPU", (1, 2)),
    "gpu": EngineTarget("tensorrt", PLAN_FILE, "KIND_GPU", (1, 8)),
}


def build_steps(
    spec: ModelSpec, version: int = FIRST_VERSION, settings: ModelSettings = DEFAULT_MODEL_SETTINGS
) -> dict[str, ModelConfig]:
    """Return the configurations of one version's steps, by their paths in the model repository."""
    name = spec.name
    preprocess = step_name(name, PREPROCESS_SUFFIX, version)
    configs = {
        target_path(preprocess, "embedded"): build_preprocess(spec, "embedded", version, settings),
        f"{step_name(name, POSTPROCESS_SUFFIX, version)}/config.pbtxt": build_postprocess(spec, version, settings),
    }
    for target in TARGETS:
        engine = build_engine(spec, target, version, settings)
        configs[target_path(step_name(name, ENGINE_SUFFIX, version), target)] = engine
        config = build_preprocess(spec, target, version, settings)
        if config != configs[target_path(preprocess, "embedded")]:
            configs[target_path(preprocess, target)] = config
    return configs


def preprocess_paths(name: str, version: int) -> list[str]:
    """Return the paths, in the model repository, of all configurations that a version's preprocess may have."""
    step = step_name(name, PREPROCESS_SUFFIX, version)
    return [target_path(step, target) for target in TARGETS]


def target_path(step: str, target: Target) -> str:
    """Return the path, in the model repository, of a step's configuration for one target."""
    return f"{step}/config.pbtxt" if target == "embedded" else f"{step}/configs/{target}.pbtxt"


def build_ensemble(
    spec: ModelSpec, version: int = FIRST_VERSION, settings: ModelSettings = DEFAULT_MODEL_SETTINGS
) -> ModelConfig:
    """Return the ensemble of one version: from encoded images to scores, results and statuses."""
    names = TENSORS
    config = _new_config(
        spec.name,
        settings,
        inputs=[_tensor(names.image, "TYPE_STRING", [1])],
        outputs=_result_tensors(spec, ensemble_labels_file(version)),
    )
    config.platform = "ensemble"
    config.version_policy.specific.versions.append(version)
    steps: Sequence[tuple[str, tuple[str, ...], tuple[str, ...]]] = (
        (PREPROCESS_SUFFIX, (names.image,), (names.pixels, names.decode_status)),
        (ENGINE_SUFFIX, (names.pixels,), (names.logits,)),
        # All outputs come from the last step: if one is an intermediate tensor too, a request for some of the outputs
        # fails with "unexpected deadlock".
        (POSTPROCESS_SUFFIX, (names.logits, names.decode_status), (names.scores, names.result, names.status)),
    )
    for suffix, inputs, outputs in steps:
        step = config.ensemble_scheduling.step.add(
            model_name=step_name(spec.name, suffix, version), model_version=version
        )
        for tensor in inputs:
            step.input_map[tensor] = tensor
        for tensor in outputs:
            step.output_map[tensor] = tensor
    return config


def build_preprocess(
    spec: ModelSpec,
    target: Target = "embedded",
    version: int = FIRST_VERSION,
    settings: ModelSettings = DEFAULT_MODEL_SETTINGS,
) -> ModelConfig:
    """Return preprocess on a target: from encoded images to `pixels`, with a status for each image."""
    names = TENSORS
    config = _new_config(
        step_name(spec.name, PREPROCESS_SUFFIX, version),
        settings,
        inputs=[_tensor(names.image, "TYPE_STRING", [1])],
        outputs=[_pixels(spec), _tensor(names.decode_status, "TYPE_STRING", [1])],
    )
    config.backend = "mlcls_preprocess"
    if settings.images != DEFAULT_IMAGE_SETTINGS:
        config.parameters[IMAGES_PARAMETER].string_value = settings.images.to_json()
    _add_instances(config, "KIND_CPU", settings.of(target).preprocess_instances)
    _add_batching(config, settings.queue, settings.of(target).preprocess_queue_delay_microseconds)
    return config


def build_engine(
    spec: ModelSpec,
    target: Target,
    version: int = FIRST_VERSION,
    settings: ModelSettings = DEFAULT_MODEL_SETTINGS,
) -> ModelConfig:
    """Return the engine of a target: from `pixels` to `logits`."""
    engine, chosen = ENGINE_TARGETS[target], settings.of(target)
    logits = _tensor(TENSORS.logits, "TYPE_FP32", [spec.num_labels])
    name = step_name(spec.name, ENGINE_SUFFIX, version)
    config = _new_config(name, settings, inputs=[_pixels(spec)], outputs=[logits])
    config.backend = engine.backend
    config.default_model_filename = engine.model_file
    _add_instances(config, engine.kind, chosen.engine_instances)
    _add_batching(config, settings.queue, chosen.engine_queue_delay_microseconds)
    if chosen.engine_threads:
        config.parameters[THREADS_PARAMETER].string_value = str(chosen.engine_threads)
    if chosen.engine_precision != "f32":
        config.parameters[PRECISION_PARAMETER].string_value = chosen.engine_precision
    if engine.cpu_accelerator:
        config.optimization.execution_accelerators.cpu_execution_accelerator.add(name=engine.cpu_accelerator)
    largest = {settings.max_batch_size} if engine.kind == "KIND_GPU" else set()
    for batch_size in sorted({*engine.warmup_batch_sizes, *largest}):
        warmup = config.model_warmup.add(name=f"batch_{batch_size}", batch_size=batch_size)
        pixels = warmup.inputs[TENSORS.pixels]
        pixels.data_type = _pb2().TYPE_UINT8
        pixels.dims.extend([spec.transform.height, spec.transform.width, 3])
        pixels.zero_data = True
    return config


def build_postprocess(
    spec: ModelSpec, version: int = FIRST_VERSION, settings: ModelSettings = DEFAULT_MODEL_SETTINGS
) -> ModelConfig:
    """Return postprocess: from `logits` and decode statuses to scores, results and statuses."""
    names = TENSORS
    config = _new_config(
        step_name(spec.name, POSTPROCESS_SUFFIX, version),
        settings,
        inputs=[
            _tensor(names.logits, "TYPE_FP32", [spec.num_labels]),
            _tensor(names.decode_status, "TYPE_STRING", [1]),
        ],
        outputs=_result_tensors(spec, LABELS_FILE),
    )
    config.backend = "mlcls_postprocess"
    _add_instances(config, "KIND_CPU", 1)
    _add_batching(config, settings.queue)
    return config


def format_config(config: ModelConfig) -> str:
    """Return the text of a `.pbtxt` file."""
    from google.protobuf import text_format

    body = text_format.MessageToString(config, as_utf8=True)
    return f"# Generated by `mlcls repository` from the model's spec; edits are overwritten.\n{body}"


def parse_config(text: str) -> ModelConfig:
    """Read the text of a `.pbtxt` file; raise protobuf's ParseError for a field that Triton does not know."""
    from google.protobuf import text_format

    return text_format.Parse(text, _pb2().ModelConfig())


def _pb2() -> Any:
    try:
        from tritonclient.grpc import model_config_pb2
    except ModuleNotFoundError as error:
        raise MissingExtraError("serve", str(error.name)) from error
    return model_config_pb2


def _new_config(
    name: str, settings: ModelSettings, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]
) -> ModelConfig:
    pb2 = _pb2()
    config: ModelConfig = pb2.ModelConfig(name=name, max_batch_size=settings.max_batch_size)
    for fields in inputs:
        config.input.append(pb2.ModelInput(**fields))
    for fields in outputs:
        config.output.append(pb2.ModelOutput(**fields))
    return config


def _tensor(name: str, data_type: str, dims: list[int]) -> dict[str, Any]:
    return {"name": name, "data_type": _pb2().DataType.Value(data_type), "dims": dims}


def _pixels(spec: ModelSpec) -> dict[str, Any]:
    return _tensor(TENSORS.pixels, "TYPE_UINT8", [spec.transform.height, spec.transform.width, 3])


def _result_tensors(spec: ModelSpec, labels_file: str) -> list[dict[str, Any]]:
    names = TENSORS
    return [
        _tensor(names.scores, "TYPE_FP32", [spec.num_labels]) | {"label_filename": labels_file},
        _tensor(names.result, "TYPE_STRING", [1]),
        _tensor(names.status, "TYPE_STRING", [1]),
    ]


def _add_instances(config: ModelConfig, kind: str, count: int) -> None:
    group = _pb2().ModelInstanceGroup
    config.instance_group.append(group(kind=group.Kind.Value(kind), count=count))


def _add_batching(config: ModelConfig, queue: QueueSettings, max_queue_delay_microseconds: int = 0) -> None:
    batching = config.dynamic_batching
    batching.max_queue_delay_microseconds = max_queue_delay_microseconds
    policy = batching.default_queue_policy
    policy.timeout_action = _pb2().ModelQueuePolicy.REJECT
    policy.default_timeout_microseconds = queue.timeout_microseconds
    policy.allow_timeout_override = True
    policy.max_queue_size = queue.max_queue_size
