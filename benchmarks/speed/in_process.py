"""The program of the contenders without a server, each in a process of its own: loaded once, idle until asked.

- OpenVINO and ONNX Runtime: bare engines, on decoded images, one thread for each of as many callers as cores; the
  fastest settings of those that docs/explanation/performance.md lists;
- bare process: the fastest plain program; decode, resize, OpenVINO and labels in one process, with two threads for each
  core: one decodes while another's image is computed. It decodes with the project's own code, so the pixels are the
  same;
- PaddleX predict(): `create_model(...).predict(path)`, one photo after the other, in PaddleX's environment, which has
  only what PaddleX installs.

`contenders.Child` starts it, and speaks to it through a pipe: a command and its arguments in, its value or error out.
"""

from __future__ import annotations

import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import numpy as np

from mlcls.tuning.closed_loop import Call, run_closed_loop

OPENVINO: Final = "OpenVINO"
ONNX_RUNTIME: Final = "ONNX Runtime"
ENGINES: Final = (OPENVINO, ONNX_RUNTIME)
BARE_PROCESS: Final = "bare process"
PADDLEX_PREDICT: Final = "PaddleX predict()"

# How often each photo is preprocessed.
_REPEATS: Final = 20

Commands = Mapping[str, Callable[..., Any]]


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def load_openvino(
    onnx: Path, size: tuple[int, int], streams: int, pin: bool = True
) -> Callable[[], Callable[..., Any]]:
    """Load OpenVINO in float32, with the graph compiled for one image and one thread for each stream.

    Args:
        onnx: The graph that is served.
        size: Height and width of its input.
        streams: Images at once.
        pin: Whether a thread stays on its core; several processes would all choose the same core.

    Returns:
        A function that makes a caller's own runner, from `pixels` (1, H, W, 3) uint8 RGB to scores (1, num_labels).
    """
    import openvino

    from mlcls.model.postprocess import apply_sigmoid

    openvino.Type.u8.to_dtype()  # see `mlcls.engines.openvino`: two threads' first calls deadlock
    core = openvino.Core()
    graph = core.read_model(str(onnx))
    graph.reshape([1, *size, 3])
    options = {"NUM_STREAMS": streams, "INFERENCE_NUM_THREADS": streams, "ENABLE_CPU_PINNING": pin}
    compiled = core.compile_model(graph, "CPU", {**options, "INFERENCE_PRECISION_HINT": "f32"})

    def make_runner() -> Callable[..., Any]:
        request = compiled.create_infer_request()

        def run(pixels: Any) -> Any:
            request.infer([pixels], share_inputs=True)
            return apply_sigmoid(request.get_output_tensor(0).data)

        return run

    return make_runner


def load_onnxruntime(onnx: Path, sessions: int) -> Callable[[], Callable[..., Any]]:
    """Load ONNX Runtime's CPU provider, with one thread for each session; see `load_openvino`."""
    import onnxruntime

    from mlcls.model.contract import TENSORS
    from mlcls.model.postprocess import apply_sigmoid

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    providers = ["CPUExecutionProvider"]
    loaded = [onnxruntime.InferenceSession(str(onnx), options, providers=providers) for _ in range(sessions)]
    turn = itertools.cycle(loaded)  # each caller gets its own

    def make_runner() -> Callable[..., Any]:
        session = next(turn)
        return lambda pixels: apply_sigmoid(session.run([TENSORS.logits], {TENSORS.pixels: pixels})[0])

    return make_runner


def _load_graph(kind: str, spec_json: str, onnx: str, photos: Sequence[str]) -> Commands:
    """Load a bare engine or the bare process."""
    import cv2

    from mlcls.images.transforms import preprocess
    from mlcls.model.postprocess import select_labels
    from mlcls.model.spec import ModelSpec

    cv2.setNumThreads(1)  # the callers are the parallelism
    spec = ModelSpec.from_json(spec_json)
    size = (spec.transform.height, spec.transform.width)
    make_runner = (
        load_onnxruntime(Path(onnx), cores()) if kind == ONNX_RUNTIME else load_openvino(Path(onnx), size, cores())
    )
    images = [Path(photo).read_bytes() for photo in photos]
    pixels = [np.array(preprocess(image, spec.transform))[None] for image in images]
    thresholds = np.asarray(spec.thresholds, np.float32)

    def label(runner: Callable[..., Any], inputs: Any) -> Any:
        return select_labels(runner(inputs)[0], thresholds, spec.labels)

    def answer() -> list[Any]:
        runner = make_runner()
        return [label(runner, one) for one in pixels]

    def measure(window_s: float, warmup_s: float) -> tuple[float, float]:
        first = itertools.count()

        def make_call() -> Call:
            runner = make_runner()
            turn = itertools.islice(itertools.cycle(range(len(images))), next(first), None)
            if kind == BARE_PROCESS:
                return lambda: label(runner, preprocess(images[next(turn)], spec.transform)[None])
            return lambda: runner(pixels[next(turn)])

        callers = 2 * cores() if kind == BARE_PROCESS else cores()
        loop = run_closed_loop(make_call, callers, window_s, warmup_s, keep_load=True)
        return loop.images_per_s, loop.percentile_ms(50)

    def measure_preprocess() -> list[float]:
        """Return the median milliseconds of each photo on one core; a photo comes again only after all others."""
        allowed = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {max(allowed)})
        times_ms: list[list[float]] = [[] for _ in images]
        for _, (image, own) in itertools.product(range(_REPEATS), zip(images, times_ms, strict=True)):
            began = time.perf_counter()
            preprocess(image, spec.transform)
            own.append((time.perf_counter() - began) * 1e3)
        os.sched_setaffinity(0, allowed)
        return [statistics.median(own) for own in times_ms]

    return {"answer": answer, "measure": measure, "measure_preprocess": measure_preprocess}


def _load_paddlex(model: str, name: str, photos: Sequence[str]) -> Commands:
    from paddlex import create_model

    predictor = create_model(model_name=name, model_dir=model, device="cpu")

    def answer() -> list[Any]:
        results = (result for photo in photos for result in predictor.predict(photo, batch_size=1))
        return [{key: result.json["res"][key] for key in ("class_ids", "scores")} for result in results]

    def measure(window_s: float, warmup_s: float) -> tuple[float, float]:
        turn = itertools.cycle(photos)
        loop = run_closed_loop(lambda: lambda: list(predictor.predict(next(turn), batch_size=1)), 1, window_s, warmup_s)
        return loop.images_per_s, loop.percentile_ms(50)

    return {"answer": answer, "measure": measure}


def _obey(pipe: Connection, load: Callable[[], Commands]) -> None:
    """Load, say so, and execute commands until the pipe ends."""
    commands: dict[str, Callable[..., Any]] = {"load": lambda: commands.update(load())}
    name, arguments = "load", ()
    while True:
        reply: tuple[Any, str | None]
        try:
            reply = (commands[name](*arguments), None)
        except Exception as error:  # reported to the parent
            reply = (None, f"{type(error).__name__}: {' '.join(str(error).split())[:600]}")
        pipe.send(reply)
        try:
            name, arguments = pipe.recv()
        except EOFError:
            return


def _main(descriptor: str, kind: str, model: str, about: str, *photos: str) -> None:
    """Run one contender; `about` is the spec in JSON, or for PaddleX the model's name."""
    load = _load_paddlex if kind == PADDLEX_PREDICT else lambda *given: _load_graph(kind, about, model, photos)
    _obey(Connection(int(descriptor)), lambda: load(model, about, photos))


if __name__ == "__main__":
    _main(*sys.argv[1:])
