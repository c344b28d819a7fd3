"""Latency and throughput of a served model, next to the bare engine: `make bench`.

One JPEG of 640x427 a request over gRPC. The two are measured in turns in one run, so that a noisy machine hits both;
the ratio is what carries over to another machine.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.machine import read_processor
from mlcls import repository
from mlcls.errors import MlclsError
from mlcls.model_spec import ModelSpec
from mlcls.openvino_engine import OpenVinoEngine
from mlcls.sample_photos import sample_photo_paths
from mlcls.server import ServerOptions, TritonServer
from mlcls.transforms import preprocess


def main() -> int:
    """Parses the arguments and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="PP-LCNet_x1_0_ML", help="imported model (default: %(default)s)")
    parser.add_argument("--repository", type=Path, default=Path("model_repository"), help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="turns (default: %(default)s)")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8], help="default: 1 8")
    arguments = parser.parse_args()
    try:
        run_benchmark(arguments.repository, arguments.model, arguments.seconds, arguments.rounds, arguments.concurrency)
    except MlclsError as error:
        print(f"throughput: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def run_benchmark(root: Path, model: str, seconds: float, rounds: int, concurrencies: list[int]) -> None:
    """Measures the bare engine and the served model at each concurrency, in turns, and prints medians and ratios."""
    spec = repository.read_spec(root, model)
    image = sample_photo_paths()[0].read_bytes()
    print(
        f"{model}, {platform.machine()}, {read_processor()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    )
    engine = _bare_engine(root, spec, image)
    bare: list[float] = []
    served: dict[int, list[list[float]]] = {concurrency: [] for concurrency in concurrencies}
    with TritonServer(ServerOptions.on_free_ports(root, model)) as server:
        for _ in range(rounds):
            bare.append(len(_measure(lambda: engine, 1, seconds)) / seconds)
            for concurrency in concurrencies:
                served[concurrency].append(_measure(lambda: _client(server, spec, image), concurrency, seconds))
    engine_rate = statistics.median(bare)
    print(f"{'':22}{'images/s':>10}{'of engine':>11}{'p50 ms':>9}{'p99 ms':>9}")
    print(f"{'engine alone':22}{engine_rate:10.1f}")
    for concurrency, turns in served.items():
        rate = statistics.median(len(turn) / seconds for turn in turns)
        latencies_ms = np.concatenate(turns) * 1e3
        p50, p99 = np.percentile(latencies_ms, [50, 99])
        print(f"{f'served, concurrency {concurrency}':22}{rate:10.1f}{rate / engine_rate:11.2f}{p50:9.1f}{p99:9.1f}")


def _bare_engine(root: Path, spec: ModelSpec, image: bytes) -> Callable[[], object]:
    engine = OpenVinoEngine(repository.find_weights(root, spec.name, "embedded"), spec)
    pixels = preprocess(image, spec.transform)[None]
    return lambda: engine.logits(pixels)


def _client(server: TritonServer, spec: ModelSpec, image: bytes) -> Callable[[], object]:
    """A request function with a connection of its own."""
    from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput

    client = InferenceServerClient(server.grpc_url)
    tensor = InferInput(spec.tensors.image, [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[image]], dtype=np.object_))
    outputs = [InferRequestedOutput(spec.tensors.result)]
    return lambda: client.infer(spec.name, [tensor], outputs=outputs)


def _measure(make_call: Callable[[], Callable[[], object]], concurrency: int, seconds: float) -> list[float]:
    """Latencies in seconds of the calls that began within the window, after a warm-up of a fifth of it."""
    latencies: list[list[float]] = [[] for _ in range(concurrency)]
    start = time.monotonic() + seconds / 5
    end = start + seconds

    def work(own: list[float]) -> None:
        call = make_call()
        while (began := time.monotonic()) < end:
            call()
            if began >= start:
                own.append(time.monotonic() - began)

    threads = [threading.Thread(target=work, args=(own,)) for own in latencies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [latency for own in latencies for latency in own]


if __name__ == "__main__":
    sys.exit(main())
