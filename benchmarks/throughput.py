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
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.machine import read_processor
from mlcls import repository
from mlcls.closed_loop import LoopFigures, ensemble_calls, run_closed_loop
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
    served: dict[int, list[LoopFigures]] = {concurrency: [] for concurrency in concurrencies}
    with TritonServer(ServerOptions.on_free_ports(root, model)) as server:
        calls = ensemble_calls(server.grpc_url, spec, [image])
        for _ in range(rounds):
            bare.append(run_closed_loop(lambda: engine, 1, seconds).images_per_s)
            for concurrency in concurrencies:
                served[concurrency].append(run_closed_loop(calls, concurrency, seconds))
    engine_rate = statistics.median(bare)
    print(f"{'':22}{'images/s':>10}{'of engine':>11}{'p50 ms':>9}{'p99 ms':>9}")
    print(f"{'engine alone':22}{engine_rate:10.1f}")
    for concurrency, turns in served.items():
        rate = statistics.median(turn.images_per_s for turn in turns)
        latencies_ms = np.concatenate([turn.latencies_s for turn in turns]) * 1e3
        p50, p99 = np.percentile(latencies_ms, [50, 99])
        print(f"{f'served, concurrency {concurrency}':22}{rate:10.1f}{rate / engine_rate:11.2f}{p50:9.1f}{p99:9.1f}")


def _bare_engine(root: Path, spec: ModelSpec, image: bytes) -> Callable[[], object]:
    engine = OpenVinoEngine(repository.find_weights(root, spec.name, "embedded"), spec)
    pixels = preprocess(image, spec.transform)[None]
    return lambda: engine.logits(pixels)


if __name__ == "__main__":
    sys.exit(main())
