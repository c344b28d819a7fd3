"""A closed loop of load: each of several callers sends its next request as soon as it has its answer."""

from __future__ import annotations

import dataclasses
import itertools
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from mlcls.errors import MissingExtraError
from mlcls.model.contract import TENSORS
from mlcls.model.spec import ModelSpec

Call = Callable[[], object]


@dataclasses.dataclass(frozen=True)
class LoopFigures:
    """What a closed loop measured.

    Attributes:
        concurrency: Number of callers.
        window_s: Length of the window, without the warm-up.
        latencies_s: Latency of each call that ended within the window, in no particular order.
        calls: Calls in the window. A call that begins or ends outside counts by the share of its time within, so that a
            slow model's rate does not depend on where the window cuts. By default the calls that ended within.
    """

    concurrency: int
    window_s: float
    latencies_s: npt.NDArray[np.float64]
    calls: float | None = None

    @property
    def images_per_s(self) -> float:
        """Throughput in images per second."""
        calls = len(self.latencies_s) if self.calls is None else self.calls
        return calls / self.window_s

    def percentile_ms(self, percent: float) -> float:
        """Return a percentile of the latency in milliseconds, 50 for the median; NaN if no call ended in the window."""
        return float(np.percentile(self.latencies_s, percent)) * 1e3 if len(self.latencies_s) else float("nan")


def run_closed_loop(
    make_call: Callable[[], Call],
    concurrency: int,
    window_s: float,
    warmup_s: float | None = None,
    keep_load: bool = False,
) -> LoopFigures:
    """Run a closed loop in threads of this process.

    Args:
        make_call: Called once per caller; returns its call, which has its own connection for example.
        concurrency: Number of callers.
        window_s: How long to measure.
        warmup_s: How long to run before measuring; by default a fifth of the window.
        keep_load: Whether callers go on until the last call that the window's end cuts is answered, so that it does not
            get faster because the others have stopped. For callers that share the cores without a queue.

    Raises:
        Exception: What the first failing call raised, after the loop has ended.
    """
    calls = [make_call() for _ in range(concurrency)]
    latencies: list[list[float]] = [[] for _ in calls]
    shares = [0.0] * concurrency
    running = set(range(concurrency))
    failures: list[Exception] = []
    start = time.monotonic() + (window_s / 5 if warmup_s is None else warmup_s)
    end = start + window_s

    def work(index: int) -> None:
        call, own = calls[index], latencies[index]
        began = time.monotonic()
        while (began < end or (keep_load and running)) and not failures:
            try:
                call()
            except Exception as error:  # raised by the loop
                failures.append(error)
                return
            ended = time.monotonic()
            if start <= ended < end:
                own.append(ended - began)
            if ended > start and began < end:
                shares[index] += (min(ended, end) - max(began, start)) / max(ended - began, 1e-9)
            if ended >= end:
                running.discard(index)
            began = ended

    threads = [threading.Thread(target=work, args=(index,)) for index in range(concurrency)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    all_latencies = np.array([latency for own in latencies for latency in own])
    return LoopFigures(concurrency, window_s, all_latencies, calls=sum(shares))


def ensemble_calls(url: str, spec: ModelSpec, images: Sequence[bytes]) -> Callable[[], Call]:
    """Return a `make_call` for `run_closed_loop`: calls that send a served ensemble one image after another over gRPC.

    `url` is `host:port` of the gRPC API. Each caller starts with a different one of the encoded images.

    Raises:
        MissingExtraError: tritonclient is not installed.
    """
    try:
        from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput
    except ModuleNotFoundError as error:
        raise MissingExtraError("serve", str(error.name)) from error
    tensors = []
    for image in images:
        tensor = InferInput(TENSORS.image, [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[image]], dtype=np.object_))
        tensors.append(tensor)
    outputs = [InferRequestedOutput(TENSORS.result)]
    first = itertools.count()

    def make_call() -> Call:
        # the environment's proxy cannot reach this machine
        client = InferenceServerClient(url, channel_args=[("grpc.enable_http_proxy", 0)])
        turn = itertools.cycle(range(len(tensors)))
        for _ in range(next(first) % len(tensors)):
            next(turn)
        return lambda: client.infer(spec.name, [tensors[next(turn)]], outputs=outputs)

    return make_call
