"""Triton backend `mlcls_preprocess`: `image` (BYTES) to `pixels` (UINT8 RGB) and `decode_status`."""

from __future__ import annotations

import cv2
import numpy as np
import triton_python_backend_utils as pb_utils

from mlcls.backends.metric_sender import MetricSender
from mlcls.backends.pulse import PROBE_REQUEST_ID, Pulse
from mlcls.backends.refusal_log import RefusalLog
from mlcls.backends.steps import preprocess_images
from mlcls.backends.tallies import DecodeTally
from mlcls.backends.triton_stub import answer_each, encode_texts, image_settings, load_spec
from mlcls.errors import ImageError


class TritonPythonModel:
    """One decoding process."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the spec and decode one image, so that the first request does not pay for lazy imports."""
        cv2.setNumThreads(1)  # the instances are the parallelism
        cv2.setLogLevel(0)  # none: RefusalLog tells of bad images
        self._pulse = Pulse.open(args)
        self._spec = load_spec(args)
        self._settings = image_settings(args)
        _, encoded = cv2.imencode(".jpg", np.zeros((64, 64, 3), np.uint8))
        preprocess_images([encoded.tobytes()], self._spec)
        version = args["model_version"]
        self._tally = DecodeTally(self._spec, version)
        self._refusal_log = RefusalLog(self._spec.name, version, pb_utils.Logger.log_warn)
        self._metrics = MetricSender(self._tally.groups, pb_utils)
        self._metrics.start()
        self._pulse.begin()

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        """Answer each request by itself; a request fails only if none of its images can be decoded."""
        with self._pulse.working():
            return answer_each(requests, self._answer, pb_utils, self._pulse)

    def finalize(self) -> None:
        """Tell that this process ends because it was told to, and send the last counts."""
        self._pulse.end()
        self._metrics.stop()

    def _answer(self, request: pb_utils.InferenceRequest) -> list[pb_utils.Tensor]:
        names = self._spec.tensors
        images = pb_utils.get_input_tensor_by_name(request, names.image).as_numpy()
        is_probe = request.request_id() == PROBE_REQUEST_ID
        try:
            observer = None if is_probe else self._tally
            pixels, statuses = preprocess_images(images.ravel(), self._spec, self._settings, observer)
        except ImageError:
            raise
        except Exception:
            self._tally.failed(images.size)
            raise
        finally:
            if refusals := self._tally.take_refusals():
                self._refusal_log.note(request.request_id(), images.size, refusals)
        return [
            pb_utils.Tensor(names.pixels, pixels),
            pb_utils.Tensor(names.decode_status, encode_texts(statuses)),
        ]
