"""The load of one point of an axis, and what is measured under it."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from benchmarks.usage import CostMeter
from mlcls.errors import ServerError
from mlcls.model.contract import TENSORS
from mlcls.server.options import ServerOptions
from mlcls.server.process import TritonServer
from mlcls.tuning.closed_loop import run_closed_loop

# The load runs this long before it is measured, and longer if a round of answers to all clients takes longer.
_WARMUP_S: Final = 1.0
# A window has room for at least this many answers to each client, even if they are computed one after the other.
_ROUNDS: Final = 3.0


@dataclasses.dataclass(frozen=True)
class GrowthLoad:
    """What is served and requested.

    Attributes:
        models: The loaded models; requests go to them in turn.
        photos: Files to send, in turn.
        clients: Callers, each with its own connection and one request at a time.
        batch_size: Images per request.
    """

    models: tuple[str, ...]
    photos: tuple[Path, ...]
    clients: int = 8
    batch_size: int = 1


@dataclasses.dataclass(frozen=True)
class GrowthFigures:
    """The result of one measurement.

    Attributes:
        images_per_s: Throughput.
        p50_ms: Latency of a request.
        p95_ms: See `p50_ms`.
        p99_ms: See `p50_ms`.
        pss_mb: Memory of all processes of the server, after the load.
        core_ms_per_image: CPU time of the server per image, by process.
        ready_s: Time from the start of the server until it was ready.
        image_bytes: Mean file size.
        metric_series: Number of series in the server's metrics.
    """

    images_per_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    pss_mb: float
    core_ms_per_image: Mapping[str, float]
    ready_s: float
    image_bytes: float
    metric_series: float


@dataclasses.dataclass
class StartedServer:
    """A server for several measurements.

    Attributes:
        server: The server.
        root: Its repository.
        ready_s: Time from the start until it was ready.
    """

    server: TritonServer
    root: Path
    ready_s: float

    @classmethod
    def start(cls, root: Path, models: Sequence[str]) -> StartedServer:
        """Start a server; the caller stops it.

        Raises:
            MlclsError: It does not start.
        """
        began = time.monotonic()
        server = TritonServer(ServerOptions.on_free_ports(root, *models)).start()
        return cls(server, root, time.monotonic() - began)

    def measure(self, load: GrowthLoad, seconds: float) -> GrowthFigures:
        """Measure one window, which is longer if answers take long.

        Raises:
            ServerError: A request fails, or none was answered.
        """
        images = [photo.read_bytes() for photo in load.photos]
        make_call = self._make_calls(load, images)
        try:
            began = time.monotonic()
            first = make_call()
            for _ in load.models:
                first()
            lone_s = (time.monotonic() - began) / len(load.models)
            round_s = lone_s * load.clients
            window_s = max(seconds, _ROUNDS * round_s)
            meter = CostMeter(self.server, *load.models)
            figures = run_closed_loop(make_call, load.clients, window_s, max(_WARMUP_S, round_s))
        except InferenceServerException as error:
            raise ServerError(f"Expected answers of {', '.join(load.models)}, got: {error}") from None
        if not len(figures.latencies_s):
            raise ServerError(f"Expected answers within {window_s:g} s, got none; raise --seconds.")
        cost = meter.read()
        return GrowthFigures(
            figures.images_per_s * load.batch_size,
            figures.percentile_ms(50),
            figures.percentile_ms(95),
            figures.percentile_ms(99),
            cost.pss_mb,
            cost.core_ms_per_image,
            self.ready_s,
            float(np.mean([len(image) for image in images])),
            float(cost.metric_series),
        )

    def _make_calls(self, load: GrowthLoad, images: Sequence[bytes]) -> Callable[[], Callable[[], object]]:
        """Return what gives each caller its own call; each call sends the next photos to the next model."""
        turns = itertools.count()
        outputs = [InferRequestedOutput(TENSORS.result)]

        def make_call() -> Callable[[], object]:
            # a proxy from the environment cannot reach this machine
            client = InferenceServerClient(self.server.grpc_url, channel_args=[("grpc.enable_http_proxy", 0)])

            def call() -> Any:
                turn = next(turns)
                first = turn * load.batch_size
                batch = [images[index % len(images)] for index in range(first, first + load.batch_size)]
                tensor = InferInput(TENSORS.image, [load.batch_size, 1], "BYTES")
                tensor.set_data_from_numpy(np.array(batch, dtype=np.object_).reshape(load.batch_size, 1))
                return client.infer(load.models[turn % len(load.models)], [tensor], outputs=outputs)

            return call

        return make_call
