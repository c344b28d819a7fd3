"""The bare engines in every setting to try; runs in the child processes of `bare_engines.py` and `bare_process.py`.

An engine takes an image as its graph's input tensor and returns scores. Each caller has its own runner.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mlcls.images.transforms import normalize
from mlcls.model.contract import TENSORS
from mlcls.model.postprocess import apply_sigmoid
from mlcls.model.spec import ModelSpec
from mlcls.paddle.model import PaddleXModel
from mlcls.paddle.predictor import PaddlePredictor

Pixels = npt.NDArray[np.uint8]
Scores = npt.NDArray[np.float32]

# Computes the scores (1, num_labels) float32 of one prepared image.
Runner = Callable[[npt.NDArray[Any]], Scores]


@dataclasses.dataclass(frozen=True)
class ModelFiles:
    """What the engines load.

    Attributes:
        spec: The model's spec.
        onnx: The graph that is served.
        paddlex: The PaddleX inference model that it comes from.
    """

    spec: ModelSpec
    onnx: Path
    paddlex: Path


@dataclasses.dataclass(frozen=True)
class Engine:
    """A loaded engine.

    Attributes:
        make_runner: Creates a caller's runner.
        callers: Number of concurrent callers.
        prepare: Converts `pixels` (1, H, W, 3) uint8 RGB to the runner's input tensor.
    """

    make_runner: Callable[[], Runner]
    callers: int
    prepare: Callable[[Pixels], npt.NDArray[Any]] = np.ascontiguousarray


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def load_openvino(files: ModelFiles, streams: int, threads: int = 0, pin: bool = True) -> Engine:
    """Load OpenVINO in float32 with the graph compiled for one image.

    Compiled for any number of images, none of the six models was faster (docs/explanation/performance.md).

    Args:
        files: The model.
        streams: Images at once; each has an equal share of the threads.
        threads: Threads of all streams; 0 for one per core.
        pin: Whether a thread stays on its core; several processes would all choose the same core.
    """
    import openvino

    openvino.Type.u8.to_dtype()  # see `mlcls.engines.openvino`: two threads' first calls deadlock
    core, transform = openvino.Core(), files.spec.transform
    graph = core.read_model(str(files.onnx))
    graph.reshape([1, transform.height, transform.width, 3])
    compiled = core.compile_model(
        graph,
        "CPU",
        {
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": threads or cores(),
            "INFERENCE_PRECISION_HINT": "f32",
            "ENABLE_CPU_PINNING": pin,
        },
    )

    def make_runner() -> Runner:
        request = compiled.create_infer_request()

        def run(pixels: npt.NDArray[Any]) -> Scores:
            request.infer([pixels], share_inputs=True)
            return apply_sigmoid(request.get_output_tensor(0).data)

        return run

    return Engine(make_runner, streams)


def load_onnxruntime(files: ModelFiles, sessions: int) -> Engine:
    """Load ONNX Runtime's CPU provider, with all cores divided among the sessions."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = max(1, cores() // sessions)
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    loaded = [
        onnxruntime.InferenceSession(str(files.onnx), options, providers=["CPUExecutionProvider"])
        for _ in range(sessions)
    ]
    turn = itertools.cycle(loaded)  # each caller gets its own
    names = TENSORS

    def make_runner() -> Runner:
        session = next(turn)
        return lambda pixels: apply_sigmoid(session.run([names.logits], {names.pixels: pixels})[0])

    return Engine(make_runner, sessions)


def load_paddle(files: ModelFiles) -> Engine:
    """Load Paddle Inference with the original graph, configured as in PaddleX, with one thread per core."""
    graph = PaddlePredictor(PaddleXModel.open(files.paddlex), cores())

    def run(image: npt.NDArray[Any]) -> Scores:
        output = graph.run(image)
        return apply_sigmoid(output) if files.spec.source_activation == "none" else output

    # normalization is part of the ONNX graph but not of Paddle's; it happens before the clock starts
    return Engine(lambda: run, 1, lambda pixels: normalize(pixels, files.spec.transform))


def list_settings(engine: str) -> Mapping[str, Callable[[ModelFiles], Engine]]:
    """Return all settings of an engine to try, by name."""
    return _ENGINES[engine](cores())


_ENGINES: Final[Mapping[str, Callable[[int], Mapping[str, Callable[[ModelFiles], Engine]]]]] = {
    "OpenVINO": lambda count: {
        f"{count} streams of 1 thread": lambda files: load_openvino(files, count),
        f"1 stream of {count} threads": lambda files: load_openvino(files, 1),
    },
    "ONNX Runtime": lambda count: {
        f"{count} sessions of 1 thread": lambda files: load_onnxruntime(files, count),
        f"1 session of {count} threads": lambda files: load_onnxruntime(files, 1),
    },
    "Paddle": lambda count: {
        f"{count} threads, oneDNN where it can": load_paddle,
    },
}

# Names of the bare engines.
ENGINES: Final = tuple(_ENGINES)
