"""Triton backend `mlcls_engine`: `pixels` (UINT8 RGB) to `logits` (FP32) on OpenVINO."""

from __future__ import annotations

import numpy as np
import triton_python_backend_utils as pb_utils

from mlcls.backend_model import engine_file, engine_precision, engine_threads, load_spec, version_folder
from mlcls.openvino_engine import OpenVinoEngine


class TritonPythonModel:
    """One engine; it takes as many images at once as there are cores."""

    def initialize(self, args: dict[str, str]) -> None:
        """Checks the ONNX file that the configuration names, FP32 or INT8, against the manifest and compiles it."""
        file = engine_file(args)
        self._spec = load_spec(args, file)
        path = version_folder(args) / file
        self._engine = OpenVinoEngine(path, self._spec, engine_threads(args), precision=engine_precision(args))

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        """Runs the images of all requests that Triton batched and hands each request its own rows."""
        names = self._spec.tensors
        batches = [pb_utils.get_input_tensor_by_name(request, names.pixels).as_numpy() for request in requests]
        logits = self._engine.logits(*batches)
        ends = np.cumsum([len(batch) for batch in batches])
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor(names.logits, logits[end - len(batch) : end])])
            for batch, end in zip(batches, ends, strict=True)
        ]
