"""Triton backend `mlcls_postprocess`: `logits` and `decode_status` to `scores`, `result` and `status`."""

from __future__ import annotations

import triton_python_backend_utils as pb_utils

from mlcls.backends.metric_sender import MetricSender
from mlcls.backends.pulse import PROBE_REQUEST_ID, Pulse
from mlcls.backends.refusal_log import RefusalLog
from mlcls.backends.steps import parse_parameters, postprocess_logits, request_thresholds
from mlcls.backends.tallies import THRESHOLD_REASON, ScoreTally, read_label_limit
from mlcls.backends.triton_stub import answer_each, decode_texts, encode_texts, load_spec
from mlcls.errors import ThresholdError
from mlcls.model.spec import OK


class TritonPythonModel:
    """Sigmoid, thresholds, labels."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the spec."""
        self._pulse = Pulse.open(args)
        self._spec = load_spec(args)
        version = args["model_version"]
        self._tally = ScoreTally(self._spec, version, read_label_limit())
        self._refusal_log = RefusalLog(self._spec.name, version, pb_utils.Logger.log_warn)
        self._metrics = MetricSender(self._tally.groups, pb_utils)
        self._metrics.start()
        self._pulse.begin()

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        """Answer each request by itself, with its own thresholds."""
        with self._pulse.working():
            return answer_each(requests, self._answer, pb_utils, self._pulse)

    def finalize(self) -> None:
        """Tell that this process ends because it was told to, and send the last counts."""
        self._pulse.end()
        self._metrics.stop()

    def _answer(self, request: pb_utils.InferenceRequest) -> list[pb_utils.Tensor]:
        names = self._spec.tensors
        decode_statuses = decode_texts(pb_utils.get_input_tensor_by_name(request, names.decode_status).as_numpy())
        try:
            thresholds = request_thresholds(parse_parameters(request.parameters()), self._spec)
        except ThresholdError as error:
            self._tally.refused(decode_statuses.count(OK))
            self._refusal_log.note(request.request_id(), len(decode_statuses), [(0, error, THRESHOLD_REASON)])
            raise
        logits = pb_utils.get_input_tensor_by_name(request, names.logits).as_numpy()
        try:
            scores, results, statuses = postprocess_logits(logits, decode_statuses, thresholds, self._spec)
        except Exception:
            self._tally.failed(decode_statuses.count(OK))
            raise
        if request.request_id() != PROBE_REQUEST_ID:
            self._tally.answered(scores, decode_statuses, statuses, thresholds)
        return [
            pb_utils.Tensor(names.scores, scores),
            pb_utils.Tensor(names.result, encode_texts(results)),
            pb_utils.Tensor(names.status, encode_texts(statuses)),
        ]
