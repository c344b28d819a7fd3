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
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from mlcls.errors import MissingExtraError
from mlcls.images.settings import DEFAULT_IMAGE_SETTINGS
from mlcls.model.contract import TENSORS
from mlcls.model.spec import ModelSpec
from mlcls.repository.names import (
    CONFIG_FILE,
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
from mlcls.repository.settings import DEFAULT_MODEL_SETTINGS, TARGETS, ModelSettings, Target

if TYPE_CHECKING:
    from tritonclient.grpc.model_config_pb2 import ModelConfig


class EngineTarget(NamedTuple):
    """How the engine runs on one target.

    Attributes:
        backend: Triton backend.
        model_file: File in the version folder.
        warmup_batch_sizes: Batch sizes that run once before the model is ready; on a GPU, the largest batch does too.
        cpu_accelerator: Execution accelerator of the onnxruntime backend.
    """

    backend: str
    model_file: str
    warmup_batch_sizes: tuple[int, ...] = (1, 2)
    cpu_accelerator: str | None = None


ENGINE_TARGETS: Final[Mapping[Target, EngineTarget]] = {
    "embedded": EngineTarget("mlcls_engine", ONNX_FILE),
    "cpu": EngineTarget("onnxruntime", ONNX_FILE, cpu_accelerator="openvino"),
    "int8": EngineTarget("mlcls_engine", INT8_FILE),
    "gpu": EngineTarget("tensorrt", PLAN_FILE, (1, 8)),
}


def target_path(step: str, target: Target) -> str:
    """Return the path, in the model repository, of a step's configuration for one target."""
    return f"{step}/{CONFIG_FILE}" if target == "embedded" else f"{step}/configs/{target}.pbtxt"


@dataclasses.dataclass(frozen=True)
class ConfigBuilder:
    """Builds the configurations of one version of a model."""

    spec: ModelSpec
    version: int = FIRST_VERSION
    settings: ModelSettings = DEFAULT_MODEL_SETTINGS

    def steps(self) -> dict[str, ModelConfig]:
        """Return the configurations of the steps, by their paths in the model repository."""
        plain = self.preprocess()
        configs = [(target, build(target)) for target in TARGETS for build in (self.preprocess, self.engine)]
        return {
            target_path(config.name, target): config
            for target, config in [*configs, (TARGETS[0], self.postprocess())]
            if target == "embedded" or config != plain
        }

    def ensemble(self) -> ModelConfig:
        """Return the ensemble: from encoded images to scores, results and statuses."""
        names = TENSORS
        tensors = {
            PREPROCESS_SUFFIX: ((names.image,), (names.pixels, names.decode_status)),
            ENGINE_SUFFIX: ((names.pixels,), (names.logits,)),
            # All outputs come from the last step: if one is an intermediate tensor too, a request for some of the
            # outputs fails with "unexpected deadlock".
            POSTPROCESS_SUFFIX: ((names.logits, names.decode_status), (names.scores, names.result, names.status)),
        }
        steps = [
            {
                "model_name": step_name(self.spec.name, suffix, self.version),
                "model_version": self.version,
                "input_map": dict(zip(inputs, inputs, strict=True)),
                "output_map": dict(zip(outputs, outputs, strict=True)),
            }
            for suffix, (inputs, outputs) in tensors.items()
        ]
        return _make_config(
            name=self.spec.name,
            max_batch_size=self.settings.max_batch_size,
            platform="ensemble",
            input=[_text(names.image)],
            output=self._results(ensemble_labels_file(self.version)),
            version_policy={"specific": {"versions": [self.version]}},
            ensemble_scheduling={"step": steps},
        )

    def preprocess(self, target: Target = "embedded") -> ModelConfig:
        """Return preprocess on a target: from encoded images to `pixels`, with a status for each image."""
        chosen, images = self.settings.of(target), self.settings.images
        return self._step(
            PREPROCESS_SUFFIX,
            "mlcls_preprocess",
            chosen.preprocess_instances,
            chosen.preprocess_queue_delay_microseconds,
            {IMAGES_PARAMETER: json.dumps(msgspec.to_builtins(images)) if images != DEFAULT_IMAGE_SETTINGS else ""},
            input=[_text(TENSORS.image)],
            output=[self._pixels(), _text(TENSORS.decode_status)],
        )

    def engine(self, target: Target) -> ModelConfig:
        """Return the engine of a target: from `pixels` to `logits`."""
        engine, chosen, pixels = ENGINE_TARGETS[target], self.settings.of(target), self._pixels()
        sizes = {*engine.warmup_batch_sizes, *([self.settings.max_batch_size] if target == "gpu" else [])}
        zeros = {"data_type": pixels["data_type"], "dims": pixels["dims"], "zero_data": True}
        config = self._step(
            ENGINE_SUFFIX,
            engine.backend,
            chosen.engine_instances,
            chosen.engine_queue_delay_microseconds,
            {
                THREADS_PARAMETER: str(chosen.engine_threads or ""),
                PRECISION_PARAMETER: chosen.engine_precision if chosen.engine_precision != "f32" else "",
            },
            kind="KIND_GPU" if target == "gpu" else "KIND_CPU",
            default_model_filename=engine.model_file,
            input=[pixels],
            output=[self._logits()],
            model_warmup=[
                {"name": f"batch_{size}", "batch_size": size, "inputs": {TENSORS.pixels: zeros}}
                for size in sorted(sizes)
            ],
        )
        if engine.cpu_accelerator:
            config.optimization.execution_accelerators.cpu_execution_accelerator.add(name=engine.cpu_accelerator)
        return config

    def postprocess(self) -> ModelConfig:
        """Return postprocess: from `logits` and decode statuses to scores, results and statuses."""
        inputs = [self._logits(), _text(TENSORS.decode_status)]
        return self._step(POSTPROCESS_SUFFIX, "mlcls_postprocess", input=inputs, output=self._results(LABELS_FILE))

    def _step(
        self,
        suffix: str,
        backend: str,
        instances: int = 1,
        queue_delay_microseconds: int = 0,
        parameters: Mapping[str, str] = MappingProxyType({}),
        kind: str = "KIND_CPU",
        **fields: Any,
    ) -> ModelConfig:
        """Return the configuration of a step; parameters without a value are left out."""
        queue = {
            "timeout_action": "REJECT",
            "default_timeout_microseconds": self.settings.queue.timeout_microseconds,
            "allow_timeout_override": True,
            "max_queue_size": self.settings.queue.max_queue_size,
        }
        return _make_config(
            name=step_name(self.spec.name, suffix, self.version),
            max_batch_size=self.settings.max_batch_size,
            backend=backend,
            instance_group=[{"kind": kind, "count": instances}],
            dynamic_batching={"max_queue_delay_microseconds": queue_delay_microseconds, "default_queue_policy": queue},
            parameters={name: {"string_value": value} for name, value in parameters.items() if value},
            **fields,
        )

    def _pixels(self) -> dict[str, Any]:
        dims = [self.spec.transform.height, self.spec.transform.width, 3]
        return {"name": TENSORS.pixels, "data_type": "TYPE_UINT8", "dims": dims}

    def _logits(self) -> dict[str, Any]:
        return {"name": TENSORS.logits, "data_type": "TYPE_FP32", "dims": [self.spec.num_labels]}

    def _results(self, labels_file: str) -> list[dict[str, Any]]:
        scores = {**self._logits(), "name": TENSORS.scores, "label_filename": labels_file}
        return [scores, _text(TENSORS.result), _text(TENSORS.status)]


def format_config(config: ModelConfig) -> str:
    """Return the text of a `.pbtxt` file."""
    from google.protobuf import text_format

    body = text_format.MessageToString(config, as_utf8=True)
    return f"# Generated by `mlcls repository` from the model's spec; edits are overwritten.\n{body}"


def parse_config(text: str) -> ModelConfig:
    """Read the text of a `.pbtxt` file; raise protobuf's ParseError for a field that Triton does not know."""
    from google.protobuf import text_format

    return text_format.Parse(text, _make_config())


def _make_config(**fields: Any) -> ModelConfig:
    try:
        from google.protobuf import json_format
        from tritonclient.grpc import model_config_pb2
    except ModuleNotFoundError as error:
        raise MissingExtraError("serve", str(error.name)) from error
    return json_format.ParseDict(fields, model_config_pb2.ModelConfig())


def _text(name: str) -> dict[str, Any]:
    return {"name": name, "data_type": "TYPE_STRING", "dims": [1]}
