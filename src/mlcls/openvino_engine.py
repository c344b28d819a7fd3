"""A served ONNX graph compiled by OpenVINO for the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from mlcls.errors import MissingExtraError, ModelFormatError
from mlcls.model_spec import ModelSpec


class OpenVinoEngine:
    """Computes `logits` from `pixels` in float32, whatever lower precision the processor offers."""

    def __init__(self, model: Path, spec: ModelSpec, threads: int = 0, cache_dir: Path | None = None) -> None:
        """Compiles the graph.

        Args:
            model: The ONNX file.
            spec: The model's spec.
            threads: Threads of one inference; 0 takes all cores that the process may use.
            cache_dir: Where compiled models are kept for a quicker next start.

        Raises:
            ModelFormatError: OpenVINO cannot load the graph, or its tensors are not those of the spec.
            MissingExtraError: openvino is not installed.
        """
        try:
            import openvino
        except ModuleNotFoundError as error:
            raise MissingExtraError("serve", "openvino") from error
        properties: dict[str, object] = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            # f32 by word: on a processor with bf16 units OpenVINO would choose bf16 and give other scores
            "INFERENCE_PRECISION_HINT": "f32",
            # two pinned processes would share one core and leave the other idle
            "ENABLE_CPU_PINNING": False,
        }
        if threads:
            properties["INFERENCE_NUM_THREADS"] = threads
        core = openvino.Core()
        if cache_dir is not None:
            core.set_property({"CACHE_DIR": str(cache_dir)})
        try:
            self._compiled = core.compile_model(str(model), "CPU", properties)
        except RuntimeError as error:
            raise ModelFormatError(
                f"{model}: OpenVINO cannot load the graph ({' '.join(str(error).split())[:300]}); import the model "
                f"again."
            ) from error
        names = spec.tensors
        # a tensor has several names where an operation between them does nothing, as the last cast of an FP16 graph
        inputs = [sorted(port.names) for port in self._compiled.inputs]
        outputs = [sorted(port.names) for port in self._compiled.outputs]
        fits = len(inputs) == len(outputs) == 1 and names.pixels in inputs[0] and names.logits in outputs[0]
        if not fits:
            raise ModelFormatError(
                f"{model}: expected the input {names.pixels} and the output {names.logits}, got {inputs} and "
                f"{outputs}; import the model again."
            )
        shape = self._compiled.outputs[0].partial_shape
        if shape[1].is_static and shape[1].get_length() != spec.num_labels:
            raise ModelFormatError(
                f"{model}: expected {spec.num_labels} logits, one for each label of the spec, got "
                f"{shape[1].get_length()}; the file belongs to another model, import this one again."
            )
        self._request = self._compiled.create_infer_request()

    def logits(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Logits (N, num_labels) float32 of `pixels` (N, H, W, 3) uint8 RGB, N free."""
        self._request.infer([np.ascontiguousarray(pixels)], share_inputs=True)
        # a copy: the request's own memory is overwritten by the next call
        return np.array(self._request.get_output_tensor(0).data, dtype=np.float32)
