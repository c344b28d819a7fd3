"""Triton backend `mlcls_engine`: `pixels` (UINT8 RGB) to `logits` (FP32) on OpenVINO."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils

from mlcls.backends.pulse import Pulse
from mlcls.backends.triton_stub import StepArguments, failed_response, read_input
from mlcls.engines.openvino import OpenVinoEngine
from mlcls.errors import RequestError
from mlcls.model.contract import TENSORS


class TritonPythonModel:
    """One engine, which computes as many images at once as there are cores."""

    def initialize(self, args: dict[str, str]) -> None:
        """Check the ONNX file that the configuration names, FP32 or INT8, against the manifest, and compile it."""
        self._pulse = Pulse.open(args)
        arguments = StepArguments.read(args)
        file = arguments.engine_file()
        spec = arguments.load_spec(file)
        self._dims = (spec.transform.height, spec.transform.width, 3)
        self._engine = OpenVinoEngine(
            arguments.version_folder / file,
            spec,
            arguments.engine_threads(),
            precision=arguments.engine_precision(),
            on_progress=self._pulse.note_progress,
        )
        self._pulse.begin()

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> None:
        """Start the images of all requests that Triton batched; each is answered when its own images are done."""
        started = []
        for request in map(_Request, requests):
            try:
                request.pixels = read_input(request.request, TENSORS.pixels, self._dims, pb_utils)
            except RequestError as error:
                request.answer(error)
            else:
                started.append(request)
        self._engine.start(started)

    def finalize(self) -> None:
        """Answer what was started, and mark this process as ended on purpose."""
        self._engine.close()
        self._pulse.end()


class _Request:
    """One of Triton's requests, kept until its answer: the pixels are in shared memory that belongs to it."""

    def __init__(self, request: pb_utils.InferenceRequest) -> None:
        self.request = request
        self._sender = request.get_response_sender()
        self.pixels: npt.NDArray[np.uint8]

    def is_cancelled(self) -> bool:
        """Return whether the caller canceled the request."""
        return bool(self.request.is_cancelled())

    def answer(self, outcome: npt.NDArray[np.float32] | Exception) -> None:
        """Send the logits, or the error."""
        if isinstance(outcome, Exception):
            response = failed_response(outcome, pb_utils)
        else:
            response = pb_utils.InferenceResponse([pb_utils.Tensor(TENSORS.logits, outcome)])
        self._sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
