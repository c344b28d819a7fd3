"""The program that `litserve_server.py` starts: a LitServe API of a photo's labels; runs in `.venv-bench`.

It decodes with the project's own code, so that the pixels are the same, and sends the labels back as JSON.
"""

from __future__ import annotations

import base64
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import cv2
import litserve
import numpy as np

from benchmarks.peers.engine_settings import ModelFiles, Runner, cores, load_openvino
from mlcls.model_spec import ModelSpec
from mlcls.postprocess import select_labels
from mlcls.transforms import preprocess


class LabelApi(litserve.LitAPI):  # type: ignore[misc]  # litserve is untyped
    """Labels of one JPEG a request."""

    def __init__(self, onnx: Path, spec: ModelSpec, workers: int, batch: int) -> None:
        super().__init__(max_batch_size=batch)
        self._onnx = onnx
        self._model_spec = spec  # `_spec` is LitServe's own
        self._workers = workers

    def setup(self, device: str) -> None:
        """Loads the graph, in each worker."""
        cv2.setNumThreads(1)
        threads = max(1, cores() // self._workers)
        files = ModelFiles(self._model_spec, self._onnx, self._onnx.parent)
        engine = load_openvino(files, threads, threads=threads, pin=self._workers == 1)
        self._idle: SimpleQueue[Runner] = SimpleQueue()
        for _ in range(engine.callers):
            self._idle.put(engine.make_runner())
        self._pool = ThreadPoolExecutor(threads)
        self._thresholds = np.asarray(self._model_spec.thresholds, np.float32)

    def decode_request(self, request: dict[str, str]) -> bytes:
        """The JPEG of a request."""
        return base64.b64decode(request["image"])

    def batch(self, inputs: list[bytes]) -> list[bytes]:
        """The images of a batch as they are."""
        return inputs

    def predict(self, images: Any) -> Any:
        """The labels of an image, or of each image of a batch, side by side."""
        return list(self._pool.map(self._label, images)) if isinstance(images, list) else self._label(images)

    def unbatch(self, output: list[Any]) -> list[Any]:
        """The labels of each image."""
        return output

    def encode_response(self, output: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """The labels; LitServe makes JSON of them."""
        return output

    def _label(self, image: bytes) -> dict[str, list[Any]]:
        pixels = preprocess(image, self._model_spec.transform)[None]
        runner = self._idle.get()
        try:
            scores = runner(pixels)[0]
        finally:
            self._idle.put(runner)
        return select_labels(scores, self._thresholds, self._model_spec.labels)


def _main(port: str, workers: str, batch: str, onnx: str, spec: str) -> None:
    api = LabelApi(Path(onnx), ModelSpec.from_json(spec), int(workers), int(batch))
    server = litserve.LitServer(
        api, accelerator="cpu", workers_per_device=int(workers), timeout=False, fast_queue=bool(os.environ.get("FQ"))
    )
    server.run(host="127.0.0.1", port=int(port), num_api_servers=1, log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    _main(*sys.argv[1:])
