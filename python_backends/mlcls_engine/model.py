"""Triton backend `mlcls_engine`: `pixels` (UINT8 RGB) to `logits` (FP32) on OpenVINO."""

from __future__ import annotations

import numpy as np
import triton_python_backend_utils as pb_utils

from mlcls.backend_model import load_spec, version_folder
from mlcls.openvino_engine import OpenVinoEngine
from mlcls.triton_config import ONNX_FILE


class TritonPythonModel:
    """One engine; its threads take all cores."""

    def initialize(self, args: dict[str, str]) -> None:
        """Checks the ONNX file against the manifest and compiles it."""
        self._spec = load_spec(args, ONNX_FILE)
        self._engine = OpenVinoEngine(version_folder(args) / ONNX_FILE, self._spec)

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        """Runs all requests that Triton batched in one inference and hands each its own rows."""
        names = self._spec.tensors
        batches = [pb_utils.get_input_tensor_by_name(request, names.pixels).as_numpy() for request in requests]
        logits = self._engine.logits(np.concatenate(batches) if len(batches) > 1 else batches[0])
        ends = np.cumsum([len(batch) for batch in batches])
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor(names.logits, logits[end - len(batch) : end])])
            for batch, end in zip(batches, ends, strict=True)
        ]
