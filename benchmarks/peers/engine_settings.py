"""The bare engines in every setting that is tried; runs in the child of `bare_engines.py` and `bare_process.py`.

An engine gets an image as the tensor that its graph takes, and gives scores. Each caller has a runner of its own.
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

from mlcls.model_spec import ModelSpec
from mlcls.paddle_runtime import import_paddle
from mlcls.paddlex_model import PaddleXModel
from mlcls.postprocess import apply_sigmoid
from mlcls.transforms import normalize

Pixels = npt.NDArray[np.uint8]
Scores = npt.NDArray[np.float32]

#: Computes the scores (1, num_labels) float32 of one prepared image.
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
        make_runner: Gives a caller its runner.
        callers: How many ask at once.
        prepare: From `pixels` (1, H, W, 3) uint8 RGB to the tensor that the runner takes.
    """

    make_runner: Callable[[], Runner]
    callers: int
    prepare: Callable[[Pixels], npt.NDArray[Any]] = np.ascontiguousarray


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def load_openvino(files: ModelFiles, streams: int, static: bool = True, threads: int = 0, pin: bool = True) -> Engine:
    """OpenVINO in float32 with threads in so many streams.

    Args:
        files: The model.
        streams: Images at once; each has an equal share of the threads.
        static: Whether the graph is compiled for one image, or for any number.
        threads: Threads of all streams; 0 takes as many as cores.
        pin: Whether a thread stays on its core; several processes would all choose the same one.
    """
    import openvino

    openvino.Type.u8.to_dtype()  # see `mlcls.openvino_engine`: two threads' first calls deadlock
    core, transform = openvino.Core(), files.spec.transform
    graph = core.read_model(str(files.onnx))
    graph.reshape([1 if static else -1, transform.height, transform.width, 3])
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
    """ONNX Runtime's CPU provider with all cores divided among so many sessions."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = max(1, cores() // sessions)
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    loaded = [
        onnxruntime.InferenceSession(str(files.onnx), options, providers=["CPUExecutionProvider"])
        for _ in range(sessions)
    ]
    turn = itertools.cycle(loaded)  # so that each caller gets one of its own
    names = files.spec.tensors

    def make_runner() -> Runner:
        session = next(turn)
        return lambda pixels: apply_sigmoid(session.run([names.logits], {names.pixels: pixels})[0])

    return Engine(make_runner, sessions)


def load_paddle(files: ModelFiles) -> Engine:
    """Paddle Inference on the original graph, configured as PaddleX does it, with as many threads as cores.

    Its oneDNN kernels are three to eight times as fast as the others, and fail on some graphs of the older format.
    """
    transform = files.spec.transform
    try:
        engine = _load_paddle(files, onednn=True)
        engine.make_runner()(engine.prepare(np.zeros((1, transform.height, transform.width, 3), np.uint8)))
    except Exception:  # paddle's C++ exceptions have no common Python type
        return _load_paddle(files, onednn=False)
    return engine


def _load_paddle(files: ModelFiles, onednn: bool) -> Engine:
    import_paddle("convert")
    from paddle import inference

    model = PaddleXModel.open(files.paddlex)
    config = inference.Config(str(model.graph), str(model.parameters))
    config.disable_gpu()
    config.disable_glog_info()
    if onednn:
        config.enable_mkldnn()
    else:
        config.disable_mkldnn()
    config.set_cpu_math_library_num_threads(cores())
    config.enable_new_ir(True)
    config.enable_new_executor()
    config.set_optimization_level(3)
    config.enable_memory_optim()
    predictor = inference.create_predictor(config)
    source = predictor.get_input_handle(predictor.get_input_names()[0])
    output = predictor.get_output_handle(predictor.get_output_names()[0])

    def run(image: npt.NDArray[Any]) -> Scores:
        source.copy_from_cpu(image)
        predictor.run()
        values: Scores = output.copy_to_cpu()
        return apply_sigmoid(values) if files.spec.source_activation == "none" else values

    # normalisation is part of the ONNX graph but not of Paddle's; it is done before the clock runs
    return Engine(lambda: run, 1, lambda pixels: normalize(pixels, files.spec.transform))


def list_settings(engine: str) -> Mapping[str, Callable[[ModelFiles], Engine]]:
    """All settings of an engine that are tried, by name."""
    return _ENGINES[engine](cores())


_ENGINES: Final[Mapping[str, Callable[[int], Mapping[str, Callable[[ModelFiles], Engine]]]]] = {
    "OpenVINO": lambda count: {
        f"{count} streams of 1 thread, batch 1": lambda files: load_openvino(files, count),
        f"1 stream of {count} threads, batch 1": lambda files: load_openvino(files, 1),
        f"{count} streams of 1 thread, free batch": lambda files: load_openvino(files, count, static=False),
        f"1 stream of {count} threads, free batch": lambda files: load_openvino(files, 1, static=False),
    },
    "ONNX Runtime": lambda count: {
        f"{count} sessions of 1 thread": lambda files: load_onnxruntime(files, count),
        f"1 session of {count} threads": lambda files: load_onnxruntime(files, 1),
    },
    "Paddle": lambda count: {
        f"{count} threads, oneDNN where it can": load_paddle,
    },
}

#: Names of the bare engines.
ENGINES: Final = tuple(_ENGINES)
