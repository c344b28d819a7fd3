"""A served ONNX graph compiled by OpenVINO for the CPU."""

from __future__ import annotations

import dataclasses
import functools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from mlcls.base.machine import BF16_FLAGS, find_bf16_units, read_cpu_flags
from mlcls.conversion.onnx_file import check_onnx_file
from mlcls.errors import ConfigError, MissingExtraError, ModelFormatError
from mlcls.model.contract import TENSORS
from mlcls.model.spec import ModelSpec
from mlcls.repository.settings import SETTINGS_FILE

# Images that wait inside the engine, so that no stream idles while the next request is on its way.
WAITING_IMAGES: Final = 1


class LogitsRequest(Protocol):
    """A request for the logits of some images.

    Attributes:
        pixels: (N, H, W, 3) uint8 RGB.
    """

    pixels: npt.NDArray[np.uint8]

    def is_cancelled(self) -> bool:
        """Return whether nobody waits for the answer anymore; called before each image."""

    def answer(self, outcome: npt.NDArray[np.float32] | Exception) -> None:
        """Take the logits (N, num_labels) float32, or the error: `CancelledError` if nobody waits.

        Called once, in any thread; must not raise.
        """


class OpenVinoEngine:
    """Computes `logits` from `pixels`, in float32 whatever the processor prefers, or in bf16 on request.

    On a CPU, one image on each core beats both a batch and one image on all cores, whose threads wait for each other.
    So the images of a call go one by one to as many streams as there are threads, on a graph of batch size 1, which
    OpenVINO optimizes better than a free one. A lone image gets all cores, on a second compilation, which holds the
    weights once more because OpenVINO lays them out for its threads.
    """

    def __init__(
        self,
        model: Path,
        spec: ModelSpec,
        threads: int = 0,
        precision: str = "f32",
        on_progress: Callable[[int], object] = lambda _: None,
    ) -> None:
        """Compile the graph.

        Args:
            model: The ONNX file.
            spec: The model's.
            threads: Threads of all streams together; 0 takes all cores that the process may use.
            precision: `f32`, or `bf16` if the processor has units for it.
            on_progress: Called with the number of images under way, when a first one begins and after each; in any
                thread.

        Raises:
            ConfigError: bf16 is asked for but the processor has no units for it; OpenVINO would silently use float32.
            ModelFormatError: The file is incomplete, OpenVINO cannot load it, or its tensors are not those of the
                spec.
            MissingExtraError: OpenVINO is not installed.
        """
        core = open_core()
        if precision == "bf16" and not find_bf16_units(read_cpu_flags()):
            raise ConfigError(
                f"engine_precision: expected f32 on a processor without {' or '.join(BF16_FLAGS)}, got bf16; set f32 "
                f"in {SETTINGS_FILE} and run: mlcls repository."
            )
        threads = threads or len(os.sched_getaffinity(0))
        check_onnx_file(model)
        self._num_labels = spec.num_labels
        try:
            graph = core.read_model(str(model))
            _check_tensors(graph, model, spec)
            graph.reshape([1, spec.transform.height, spec.transform.width, 3])
            requests = _stream_requests(core, graph, threads, precision)
            self._lone_request = (
                _compile(core, graph, streams=1, threads=threads, precision=precision).create_infer_request()
                if threads > 1
                else None
            )
        except RuntimeError as error:
            # an INT8 file may fail in bf16 only
            other = f"set f32 in {SETTINGS_FILE} and run mlcls repository, or " if precision == "bf16" else ""
            raise ModelFormatError(
                f"{model}: OpenVINO cannot load the graph in {precision} ({' '.join(str(error).split())[:300]}); "
                f"{other}import the model again."
            ) from error
        self._pool = ThreadPoolExecutor(threads + WAITING_IMAGES)
        self._places = threading.Semaphore(threads + WAITING_IMAGES)
        self._under_way = 0
        self._on_progress = on_progress
        self._lock = threading.Lock()
        self._idle: SimpleQueue[Any] = SimpleQueue()
        for request in requests:
            self._idle.put(request)

    def logits(self, *batches: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return the logits (sum of all N, num_labels) float32 of arrays of `pixels` (N, H, W, 3) uint8 RGB."""
        requests = [_AwaitedRequest(batch) for batch in batches]
        self.start(requests)
        return np.concatenate([request.logits.result() for request in requests])

    def start(self, requests: Sequence[LogitsRequest]) -> None:
        """Start to compute the logits of requests; return once another image could begin, before these are done.

        So no stream idles while another request of the same call still has an image to go.
        """
        is_lone = self._lone_request is not None and sum(len(request.pixels) for request in requests) == 1
        for request in requests:
            count = len(request.pixels)
            started = _StartedRequest(request, np.empty((count, self._num_labels), np.float32), count)
            if not count:
                request.answer(started.logits)
            for index in range(count):
                self._places.acquire()
                with self._lock:
                    self._under_way += 1
                    is_first = self._under_way == 1
                    if is_first:
                        self._on_progress(1)
                self._pool.submit(self._compute, started, index, is_first and is_lone)
        with self._places:  # further requests wait in Triton's queue, which limits their number and time
            pass

    def close(self) -> None:
        """Wait for what was started."""
        self._pool.shutdown()

    def _compute(self, started: _StartedRequest, index: int, is_alone: bool) -> None:
        stream = self._lone_request if is_alone else self._idle.get()
        try:
            if started.request.is_cancelled():
                raise CancelledError
            _infer(stream, started.request.pixels[index : index + 1], started.logits[index])
        except Exception as error:  # the caller gets it as the outcome
            started.error = error
        finally:
            if not is_alone:
                self._idle.put(stream)
            with self._lock:
                self._under_way -= 1
                self._on_progress(self._under_way)
                started.to_go -= 1
                is_last = not started.to_go
            self._places.release()
            if is_last:
                started.request.answer(started.logits if started.error is None else started.error)


@dataclasses.dataclass
class _StartedRequest:
    """A request whose images finish in any order: the logits of those that are done, and how many are not."""

    request: LogitsRequest
    logits: npt.NDArray[np.float32]
    to_go: int
    error: Exception | None = None


class _AwaitedRequest:
    """A request whose caller waits for it in another thread."""

    def __init__(self, pixels: npt.NDArray[np.uint8]) -> None:
        self.pixels = pixels
        self.logits: Future[npt.NDArray[np.float32]] = Future()

    def is_cancelled(self) -> bool:
        return False

    def answer(self, outcome: npt.NDArray[np.float32] | Exception) -> None:
        if isinstance(outcome, Exception):
            self.logits.set_exception(outcome)
        else:
            self.logits.set_result(outcome)


def _check_tensors(graph: Any, model: Path, spec: ModelSpec) -> None:
    # a tensor has several names if an operation between them does nothing, as the last cast of an FP16 graph
    inputs = [sorted(port.names) for port in graph.inputs]
    outputs = [sorted(port.names) for port in graph.outputs]
    if not (len(inputs) == len(outputs) == 1 and TENSORS.pixels in inputs[0] and TENSORS.logits in outputs[0]):
        raise ModelFormatError(
            f"{model}: expected the input {TENSORS.pixels} and the output {TENSORS.logits}, got {inputs} and "
            f"{outputs}; import the model again."
        )
    shape = graph.outputs[0].partial_shape
    if shape[1].is_static and shape[1].get_length() != spec.num_labels:
        raise ModelFormatError(
            f"{model}: expected {spec.num_labels} logits, one for each label of the spec, got "
            f"{shape[1].get_length()}; the file belongs to another model, import this one again."
        )


@functools.cache
def open_core() -> Any:
    """Return OpenVINO's core, the only one of this process, which stays until it ends.

    Several cores would be a trap (OpenVINO 2026.4): each gives its thread a stack for signal handlers and at its end
    restores the one before, even if the core of that one is gone. The next signal, Ctrl-C for example, would then end
    in a segmentation fault.

    Raises:
        MissingExtraError: OpenVINO is not installed.
    """
    try:
        import openvino
    except ModuleNotFoundError as error:
        raise MissingExtraError("serve", "openvino") from error
    # the first conversion of a type for numpy deadlocks if two threads make it at once (OpenVINO 2026.4)
    openvino.Type.u8.to_dtype()
    core = openvino.Core()
    core.get_property("CPU", "FULL_DEVICE_NAME")  # loads the plugin
    return core


def _stream_requests(core: Any, graph: Any, streams: int, precision: str) -> list[Any]:
    """Return requests that run side by side on one thread each.

    The streams of one compilation share the weights. With more than one stream, OpenVINO 2026.4 computes INT8 wrongly
    on processors that have only AVX2, by up to 0.7 of a score; so for INT8 each stream is its own compilation.
    """
    if any(node.get_type_name() == "FakeQuantize" for node in graph.get_ops()):
        return [_compile(core, graph, 1, 1, precision).create_infer_request() for _ in range(streams)]
    compiled = _compile(core, graph, streams, streams, precision)
    return [compiled.create_infer_request() for _ in range(streams)]


def _compile(core: Any, graph: Any, streams: int, threads: int, precision: str) -> Any:
    properties = {
        "NUM_STREAMS": streams,
        "INFERENCE_NUM_THREADS": threads,
        # explicit: on a processor with bf16 units OpenVINO would choose bf16 and give other scores
        "INFERENCE_PRECISION_HINT": precision,
        # two pinned processes would share one core and leave the other idle
        "ENABLE_CPU_PINNING": False,
    }
    return core.compile_model(graph, "CPU", properties)


def _infer(request: Any, image: npt.NDArray[np.uint8], logits: npt.NDArray[np.float32]) -> None:
    """Run one image and copy the result, as the request's own memory is overwritten by the next one."""
    request.infer([np.ascontiguousarray(image)], share_inputs=True)
    logits[:] = request.get_output_tensor(0).data[0]
