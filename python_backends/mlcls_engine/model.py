"""Triton backend `mlcls_engine`: `pixels` (UINT8 RGB) to `logits` (FP32) on OpenVINO."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils

from mlcls.backend_model import (
    cancelled_response,
    engine_file,
    engine_precision,
    engine_threads,
    failed_response,
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
        self._engine = OpenVinoEngine(
            version_folder(args) / file,
            self._spec,
            engine_threads(args),
            precision=engine_precision(args),
            on_progress=self._pulse.note_progress,
        )
        self._pulse.begin()

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> None:
        """Starts the images of all requests that Triton batched; each request is answered when its own are done."""
        pixels = self._spec.tensors.pixels
        started = []
        for request in requests:
            sender = request.get_response_sender()
            if request.is_cancelled():
                _send(sender, cancelled_response(pb_utils))
                continue
            batch = pb_utils.get_input_tensor_by_name(request, pixels).as_numpy()
            # the request goes along: the images are in shared memory that is its own
            started.append((batch, partial(self._answer, request, sender)))
        self._engine.start(started)

    def finalize(self) -> None:
        """Answers what was started, and tells that this process ends because it was told to."""
        self._engine.close()
        self._pulse.end()

    def _answer(self, _: Any, sender: Any, outcome: npt.NDArray[np.float32] | Exception) -> None:
        if isinstance(outcome, Exception):
            _send(sender, failed_response(outcome, pb_utils))
        else:
            _send(sender, pb_utils.InferenceResponse([pb_utils.Tensor(self._spec.tensors.logits, outcome)]))


def _send(sender: Any, response: Any) -> None:
    sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
