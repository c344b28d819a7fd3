"""A closed loop of load: a number of callers, each of which asks again as soon as it has its answer."""

from __future__ import annotations

import dataclasses
import itertools
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from mlcls.errors import MissingExtraError
from mlcls.model_spec import ModelSpec

Call = Callable[[], object]


@dataclasses.dataclass(frozen=True)
class LoopFigures:
    """What a closed loop measured.

    Attributes:
        concurrency: Callers.
        window_s: Length of the window, without the warm-up.
        latencies_s: Of each call that ended within the window, in no order.
        images_per_call: Images that a call stands for.
    """

    concurrency: int
    window_s: float
    latencies_s: npt.NDArray[np.float64]
    images_per_call: int = 1

    @property
    def images_per_s(self) -> float:
        """Throughput in images per second."""
        return len(self.latencies_s) * self.images_per_call / self.window_s

    def percentile_ms(self, percent: float) -> float:
        """A percentile of the latency in milliseconds, 50 for the median; NaN where no call ended in the window."""
        return float(np.percentile(self.latencies_s, percent)) * 1e3 if len(self.latencies_s) else float("nan")


def run_closed_loop(
    make_call: Callable[[], Call], concurrency: int, window_s: float, warmup_s: float | None = None
) -> LoopFigures:
    """Runs a closed loop in threads of this process.

    Args:
        make_call: Gives each caller its own call, with a connection of its own for example.
        concurrency: Callers.
        window_s: How long it is measured.
        warmup_s: How long it runs before; by default a fifth of the window.

    Raises:
        Exception: What the first failing call raised; the loop has ended then.
    """
    calls = [make_call() for _ in range(concurrency)]
    latencies: list[list[float]] = [[] for _ in calls]
    failures: list[Exception] = []
    start = time.monotonic() + (window_s / 5 if warmup_s is None else warmup_s)
    end = start + window_s

    def work(call: Call, own: list[float]) -> None:
        began = time.monotonic()
        while began < end and not failures:
            try:
                call()
            except Exception as error:  # told to the caller of the loop
                failures.append(error)
                return
            ended = time.monotonic()
            if start <= ended < end:
                own.append(ended - began)
            began = ended

    threads = [threading.Thread(target=work, args=pair) for pair in zip(calls, latencies, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return LoopFigures(concurrency, window_s, np.array([latency for own in latencies for latency in own]))


def ensemble_calls(url: str, spec: ModelSpec, images: Sequence[bytes]) -> Callable[[], Call]:
    """Calls for `run_closed_loop` that ask a served ensemble over gRPC for the result of one image after the other.

    Args:
        url: `host:port` of the gRPC API.
        spec: The served model's spec.
        images: Encoded images; each caller begins with another one.
    """
    try:
        from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput
    except ModuleNotFoundError as error:
        raise MissingExtraError("serve", str(error.name)) from error
    tensors = []
    for image in images:
        tensor = InferInput(spec.tensors.image, [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[image]], dtype=np.object_))
        tensors.append(tensor)
    outputs = [InferRequestedOutput(spec.tensors.result)]
    first = itertools.count()

    def make_call() -> Call:
        # a proxy of the environment has no way to this machine
        client = InferenceServerClient(url, channel_args=[("grpc.enable_http_proxy", 0)])
        turn = itertools.cycle(range(len(tensors)))
        for _ in range(next(first) % len(tensors)):
            next(turn)
        return lambda: client.infer(spec.name, [tensors[next(turn)]], outputs=outputs)

    return make_call
