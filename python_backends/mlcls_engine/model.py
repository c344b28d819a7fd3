"""Triton backend `mlcls_engine`: `pixels` (UINT8 RGB) to `logits` (FP32) on OpenVINO."""

from __future__ import annotations

import numpy as np
import triton_python_backend_utils as pb_utils

from mlcls.backend_model import (
    cancelled_response,
    engine_file,
    engine_precision,
    engine_threads,
    load_spec,
    version_folder,
)
from mlcls.openvino_engine import OpenVinoEngine
from mlcls.pulse import Pulse


class TritonPythonModel:
    """One engine; it takes as many images at once as there are cores."""

    def initialize(self, args: dict[str, str]) -> None:
        """Checks the ONNX file that the configuration names, FP32 or INT8, against the manifest and compiles it."""
        self._pulse = Pulse.open(args)
        file = engine_file(args)
        self._spec = load_spec(args, file)
        path = version_folder(args) / file
        self._engine = OpenVinoEngine(path, self._spec, engine_threads(args), precision=engine_precision(args))
        self._pulse.begin()

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        """Runs the images of all requests that Triton batched and hands each request its own rows."""
        with self._pulse.working():
            return self._answer(requests)

    def finalize(self) -> None:
        """Tells that this process ends because it was told to."""
        self._pulse.end()

    def _answer(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        names = self._spec.tensors
        have_left = [request.is_cancelled() for request in requests]
        batches = [
            pb_utils.get_input_tensor_by_name(request, names.pixels).as_numpy()
            for request, has_left in zip(requests, have_left, strict=True)
            if not has_left
        ]
        ends = np.cumsum([len(batch) for batch in batches])
        rows = iter(np.split(self._engine.logits(*batches), ends[:-1]) if batches else [])
        return [
            cancelled_response(pb_utils)
            if has_left
            else pb_utils.InferenceResponse([pb_utils.Tensor(names.logits, next(rows))])
            for has_left in have_left
        ]
