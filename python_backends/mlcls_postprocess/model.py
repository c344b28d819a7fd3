"""Triton backend `mlcls_postprocess`: `logits` and `decode_status` to `scores`, `result` and `status`."""

from __future__ import annotations

import triton_python_backend_utils as pb_utils

from mlcls.backends.metric_sender import CounterGroup
from mlcls.backends.pulse import PROBE_REQUEST_ID
from mlcls.backends.steps import postprocess_logits, request_thresholds
from mlcls.backends.tallies import THRESHOLD_REASON, ScoreTally, read_label_limit
from mlcls.backends.triton_stub import RequestStep, StepArguments, decode_texts, encode_texts, read_input
from mlcls.errors import ThresholdError
from mlcls.model.contract import OK, TENSORS


class TritonPythonModel(RequestStep):
    """Sigmoid, thresholds, labels."""

    def prepare(self, arguments: StepArguments) -> list[CounterGroup]:
        """Make the counters."""
        self._tally = ScoreTally(self.spec, arguments.version, read_label_limit())
        return self._tally.groups

    def answer(self, request: pb_utils.InferenceRequest) -> list[pb_utils.Tensor]:
        """Select the labels of each image of a request, with the request's own thresholds."""
        decode_statuses = decode_texts(read_input(request, TENSORS.decode_status, (1,), pb_utils))
        try:
            thresholds = request_thresholds(request.parameters(), self.spec)
        except ThresholdError as error:
            self._tally.refused(decode_statuses.count(OK))
            self.refusal_log.note(request.request_id(), len(decode_statuses), [(0, error, THRESHOLD_REASON)])
            raise
        logits = read_input(request, TENSORS.logits, (self.spec.num_labels,), pb_utils)
        try:
            scores, results, statuses = postprocess_logits(logits, decode_statuses, thresholds, self.spec)
        except Exception:
            self._tally.failed(decode_statuses.count(OK))
            raise
        if request.request_id() != PROBE_REQUEST_ID:
            self._tally.answered(scores, decode_statuses, statuses, thresholds)
        return [
            pb_utils.Tensor(TENSORS.scores, scores),
            pb_utils.Tensor(TENSORS.result, encode_texts(results)),
            pb_utils.Tensor(TENSORS.status, encode_texts(statuses)),
        ]
