"""Triton backend `mlcls_postprocess`: `logits` and `decode_status` to `scores`, `result` and `status`."""

from __future__ import annotations

import triton_python_backend_utils as pb_utils

from mlcls.backend_model import decode_texts, encode_texts, load_spec
from mlcls.errors import ThresholdError
from mlcls.serving import parse_parameters, postprocess_logits, request_thresholds


class TritonPythonModel:
    """Sigmoid, thresholds, labels."""

    def initialize(self, args: dict[str, str]) -> None:
        """Reads the spec."""
        self._spec = load_spec(args)

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        """Answers each request by itself, with its own thresholds."""
        return [self._respond(request) for request in requests]

    def _respond(self, request: pb_utils.InferenceRequest) -> pb_utils.InferenceResponse:
        names = self._spec.tensors
        try:
            thresholds = request_thresholds(parse_parameters(request.parameters()), self._spec)
        except ThresholdError as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG))
        logits = pb_utils.get_input_tensor_by_name(request, names.logits).as_numpy()
        decode_statuses = decode_texts(pb_utils.get_input_tensor_by_name(request, names.decode_status).as_numpy())
        scores, results, statuses = postprocess_logits(logits, decode_statuses, thresholds, self._spec)
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor(names.scores, scores),
                pb_utils.Tensor(names.result, encode_texts(results)),
                pb_utils.Tensor(names.status, encode_texts(statuses)),
            ]
        )
