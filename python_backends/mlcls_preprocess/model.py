"""Triton backend `mlcls_preprocess`: `image` (BYTES) to `pixels` (UINT8 RGB) and `decode_status`."""

from __future__ import annotations

import cv2
import numpy as np
import triton_python_backend_utils as pb_utils

from mlcls.backends.metric_sender import CounterGroup
from mlcls.backends.pulse import PROBE_REQUEST_ID
from mlcls.backends.steps import preprocess_images
from mlcls.backends.tallies import DecodeTally
from mlcls.backends.triton_stub import RequestStep, StepArguments, encode_texts, read_input
from mlcls.errors import ImageError
from mlcls.model.contract import TENSORS


class TritonPythonModel(RequestStep):
    """One decoding process."""

    def prepare(self, arguments: StepArguments) -> list[CounterGroup]:
        """Decode one image, so that the first request does not pay for lazy imports."""
        cv2.setNumThreads(1)  # the instances are the parallelism
        cv2.setLogLevel(0)  # silent: RefusalLog reports bad images
        self._settings = arguments.image_settings()
        _, encoded = cv2.imencode(".jpg", np.zeros((64, 64, 3), np.uint8))
        preprocess_images([encoded.tobytes()], self.spec)
        self._tally = DecodeTally(self.spec, arguments.version)
        return self._tally.groups

    def answer(self, request: pb_utils.InferenceRequest) -> list[pb_utils.Tensor]:
        """Decode the images of a request; it fails only if none of them can be decoded."""
        images = read_input(request, TENSORS.image, (1,), pb_utils)
        is_probe = request.request_id() == PROBE_REQUEST_ID
        try:
            tally = None if is_probe else self._tally
            pixels, statuses = preprocess_images(images.ravel(), self.spec, self._settings, tally)
        except ImageError:
            raise
        except Exception:
            self._tally.failed(images.size)
            raise
        finally:
            if refusals := self._tally.take_refusals():
                self.refusal_log.note(request.request_id(), images.size, refusals)
        return [
            pb_utils.Tensor(TENSORS.pixels, pixels),
            pb_utils.Tensor(TENSORS.decode_status, encode_texts(statuses)),
        ]
