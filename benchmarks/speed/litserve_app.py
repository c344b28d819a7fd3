"""The program of LitServe, in `.venv-bench`: an API that labels photos with OpenVINO.

It decodes with the project's own code, so that the pixels are the same, and returns the labels as JSON. Each core has a
worker that decodes and computes one image at a time on one thread. LitServe's batches are not used: one worker that
computes a batch in parallel on as many streams is no faster.
"""

from __future__ import annotations

import base64
import sys
from pathlib import Path
from typing import Any

import cv2
import litserve
import numpy as np

from benchmarks.speed.in_process import cores, load_openvino
from mlcls.images.transforms import preprocess
from mlcls.model.postprocess import select_labels
from mlcls.model.spec import ModelSpec


class LabelApi(litserve.LitAPI):  # type: ignore[misc]  # litserve is untyped
    """Labels one JPEG per request."""

    def __init__(self, onnx: Path, spec: ModelSpec) -> None:
        super().__init__()
        self._onnx = onnx
        self._model_spec = spec  # `_spec` is LitServe's own

    def setup(self, device: str) -> None:
        """Load the graph, in each worker."""
        cv2.setNumThreads(1)
        transform = self._model_spec.transform
        self._runner = load_openvino(self._onnx, (transform.height, transform.width), streams=1, pin=False)()
        self._thresholds = np.asarray(self._model_spec.thresholds, np.float32)

    def decode_request(self, request: dict[str, str]) -> bytes:
        """Return the JPEG of a request."""
        return base64.b64decode(request["image"])

    def predict(self, image: bytes) -> dict[str, list[Any]]:
        """Return the labels of a JPEG; LitServe converts them to JSON."""
        pixels = preprocess(image, self._model_spec.transform)[None]
        return select_labels(self._runner(pixels)[0], self._thresholds, self._model_spec.labels)


def _main(port: str, onnx: str, spec: str) -> None:
    api = LabelApi(Path(onnx), ModelSpec.from_json(spec))
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=cores(), timeout=False)
    server.run(host="127.0.0.1", port=int(port), num_api_servers=1, log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    _main(*sys.argv[1:])
