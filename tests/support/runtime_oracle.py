"""The answers of other runtime versions; run by the Python of `.venv-oldest`, which does not have mlcls.

    python tests/support/runtime_oracle.py ANSWERS.npz PIXELS.npy MODEL.onnx [MODEL.onnx ...]

Runs each model on OpenVINO and on ONNX Runtime, image by image and with all images at once. Writes the logits under
`INDEX.RUNTIME.BATCH_SIZE` and the runtimes' versions under `RUNTIME`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import openvino

Run = Callable[[Any], Any]


def load_onnxruntime(path: Path) -> Run:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    source = session.get_inputs()[0].name
    return lambda pixels: session.run(None, {source: pixels})[0]


def load_openvino(path: Path) -> Run:
    properties = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(str(path), "CPU", properties)
    return lambda pixels: np.array(compiled([pixels])[0])


LOADERS = {"onnxruntime": load_onnxruntime, "openvino": load_openvino}


def main() -> None:
    target, pixels_path, *models = map(Path, sys.argv[1:])
    pixels = np.load(pixels_path)
    answers: dict[str, Any] = {
        "onnxruntime": np.array(onnxruntime.__version__),
        "openvino": np.array(openvino.__version__),
    }
    for index, path in enumerate(models):
        for runtime, load in LOADERS.items():
            run = load(path)
            answers[f"{index}.{runtime}.1"] = np.concatenate([run(image[None]) for image in pixels])
            answers[f"{index}.{runtime}.{len(pixels)}"] = run(pixels)
    np.savez(target, **answers)


if __name__ == "__main__":
    main()
