"""Triton backend `mlcls_postprocess`: `logits` and `decode_status` to `scores`, `result` and `status`."""

from __future__ import annotations

import triton_python_backend_utils as pb_utils

from mlcls.backend_model import answer_each, decode_texts, encode_texts, load_spec
from mlcls.pulse import Pulse
from mlcls.serving import parse_parameters, postprocess_logits, request_thresholds


class TritonPythonModel:
    """Sigmoid, thresholds, labels."""

    def initialize(self, args: dict[str, str]) -> None:
        """Reads the spec."""
        self._pulse = Pulse.open(args)
        self._spec = load_spec(args)
        self._pulse.begin()

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        """Answers each request by itself, with its own thresholds."""
        with self._pulse.working():
            return answer_each(requests, self._answer, pb_utils, self._pulse)

    def finalize(self) -> None:
        """Tells that this process ends because it was told to."""
        self._pulse.end()

    def _answer(self, request: pb_utils.InferenceRequest) -> list[pb_utils.Tensor]:
        names = self._spec.tensors
        thresholds = request_thresholds(parse_parameters(request.parameters()), self._spec)
        logits = pb_utils.get_input_tensor_by_name(request, names.logits).as_numpy()
        decode_statuses = decode_texts(pb_utils.get_input_tensor_by_name(request, names.decode_status).as_numpy())
        scores, results, statuses = postprocess_logits(logits, decode_statuses, thresholds, self._spec)
        return [
            pb_utils.Tensor(names.scores, scores),
            pb_utils.Tensor(names.result, encode_texts(results)),
            pb_utils.Tensor(names.status, encode_texts(statuses)),
        ]
