"""The program that `litserve_server.py` starts in `.venv-bench`: a LitServe API that labels photos.

It decodes with the project's own code, so that the pixels are the same, and returns the labels as JSON.
"""

from __future__ import annotations

import base64
import sys
from pathlib import Path
from typing import Any

import cv2
import litserve
import numpy as np

from benchmarks.speed.peers.engine_settings import ModelFiles, load_openvino
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
        files = ModelFiles(self._model_spec, self._onnx, self._onnx.parent)
        self._runner = load_openvino(files, streams=1, threads=1, pin=False).make_runner()
        self._thresholds = np.asarray(self._model_spec.thresholds, np.float32)

    def decode_request(self, request: dict[str, str]) -> bytes:
        """Return the JPEG of a request."""
        return base64.b64decode(request["image"])

    def predict(self, image: bytes) -> dict[str, list[Any]]:
        """Return the labels of a JPEG."""
        pixels = preprocess(image, self._model_spec.transform)[None]
        return select_labels(self._runner(pixels)[0], self._thresholds, self._model_spec.labels)

    def encode_response(self, output: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Return the labels; LitServe converts them to JSON."""
        return output


def _main(port: str, workers: str, onnx: str, spec: str) -> None:
    api = LabelApi(Path(onnx), ModelSpec.from_json(spec))
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=int(workers), timeout=False)
    server.run(host="127.0.0.1", port=int(port), num_api_servers=1, log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    _main(*sys.argv[1:])
