"""Triton backend `mlcls_preprocess`: `image` (BYTES) to `pixels` (UINT8 RGB) and `decode_status`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Generator, Sequence
from concurrent.futures import CancelledError
from typing import Any

import cv2
import numpy as np
import triton_python_backend_utils as pb_utils
from PIL import AvifImagePlugin

from mlcls.backends.decoding_lanes import DecodingLanes
from mlcls.backends.metric_sender import CounterGroup
from mlcls.backends.pulse import PROBE_REQUEST_ID
from mlcls.backends.steps import OpenedImages, preprocess_images
from mlcls.backends.tallies import DecodeTally
from mlcls.backends.triton_stub import Step, StepArguments, encode_texts, failed_response, read_input
from mlcls.errors import ImageError, OverloadedError
from mlcls.model.contract import TENSORS


@dataclasses.dataclass(frozen=True)
class _Opened:
    """One of Triton's requests with its images, opened but not decoded; `decoding` goes on by one image a step."""

    id: str
    sender: Any
    timeout_s: float
    images: OpenedImages
    decoding: Generator[None, None, Any]


class TritonPythonModel(Step):
    """One decoding process."""

    def prepare(self, arguments: StepArguments) -> list[CounterGroup]:
        """Decode one image, so that the first request does not pay for lazy imports."""
        cv2.setNumThreads(1)  # the instances are the parallelism
        cv2.setLogLevel(0)  # silent: RefusalLog reports bad images
        AvifImagePlugin.DEFAULT_MAX_THREADS = 1
        self._settings = arguments.image_settings()
        self._queue = arguments.queue_settings()
        _, encoded = cv2.imencode(".jpg", np.zeros((64, 64, 3), np.uint8))
        preprocess_images([encoded.tobytes()], self.spec)
        self._tally = DecodeTally(self.spec, arguments.version)
        self._lanes = DecodingLanes(self._queue.max_queue_size)
        return self._tally.groups

    def execute(self, requests: Sequence[pb_utils.InferenceRequest]) -> None:
        """Answer small requests now, the smallest first, and give large ones to their lane."""
        opened = []
        with self.pulse.working():
            for request in requests:
                self.pulse.beat()
                sender = request.get_response_sender()
                try:
                    opened.append(self._open(request, sender))
                except Exception as error:  # the others must be answered all the same
                    _send(sender, failed_response(error, pb_utils))
            for each in sorted(opened, key=lambda each: each.images.work_s):
                self._lanes.run(functools.partial(self._advance, each), each.images.work_s, each.timeout_s)

    def finalize(self) -> None:
        """Answer what waits, then end."""
        self._lanes.close()
        super().finalize()

    def _open(self, request: pb_utils.InferenceRequest, sender: Any) -> _Opened:
        tensor = read_input(request, TENSORS.image, (1,), pb_utils)
        timeout_s = (request.timeout() or self._queue.timeout_microseconds) / 1e6
        images = OpenedImages(tensor.ravel(), self._settings)
        tally = None if request.request_id() == PROBE_REQUEST_ID else self._tally
        return _Opened(request.request_id(), sender, timeout_s, images, images.preprocess(self.spec, tally))

    def _advance(self, request: _Opened, error: OverloadedError | None) -> bool:
        """Decode the next image of a request, or answer it; return whether there is more to do.

        A request fails only if none of its images can be decoded.
        """
        with self.pulse.working():
            try:
                if error is not None:
                    raise error
                if request.sender.is_cancelled():
                    raise CancelledError
                next(request.decoding)
                return True
            except StopIteration as end:
                pixels, statuses = end.value
                texts = pb_utils.Tensor(TENSORS.decode_status, encode_texts(statuses))
                response = pb_utils.InferenceResponse([pb_utils.Tensor(TENSORS.pixels, pixels), texts])
            except Exception as fault:  # the request's, and no other's
                if not isinstance(fault, ImageError | OverloadedError | CancelledError):
                    self._tally.failed(len(request.images))
                response = failed_response(fault, pb_utils)
            self.refusal_log.note(request.id, len(request.images), request.images.refusals)
            _send(request.sender, response)
            return False


def _send(sender: Any, response: pb_utils.InferenceResponse) -> None:
    final = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
    try:
        sender.send(response, flags=final)
    except Exception as error:  # no shared memory is left for the tensors
        sender.send(failed_response(error, pb_utils), flags=final)
