"""Compare the client's throughput on a folder of images with NVIDIA's perf_analyzer: `make bench-client`.

Both ask the same server over gRPC, with one image per request and the same number of requests in flight. They take
turns in one run, so that a noisy machine affects both; only the ratio carries over to another machine. Then the client
processes the whole folder in one call, and its memory is sampled.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import numpy as np
import psutil
from PIL import Image
from tqdm import tqdm

from benchmarks.machine import describe_machine
from benchmarks.speed.perf_analyzer import Load, PerfAnalyzer, write_input_data
from mlcls.base.machine import format_machine
from mlcls.errors import MlclsError
from mlcls.server.options import ServerOptions
from mlcls.server.process import TritonServer
from mlcls_client import Model, create_model

# Number of images that perf_analyzer sends again and again; it keeps them all in memory.
PERF_ANALYZER_IMAGES: Final = 200
_SIZE: Final = (427, 640)
_ROOT: Final = Path(__file__).resolve().parents[2]


def main() -> int:
    """Parse the arguments and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="PP-LCNet_x1_0_ML", help="imported model (default: %(default)s)")
    parser.add_argument("--repository", type=Path, default=Path("model_repository"), help="default: %(default)s")
    parser.add_argument("--images", type=int, default=5000, help="images in the folder (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="turns (default: %(default)s)")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[16], help="requests in flight (default: 16)")
    arguments = parser.parse_args()
    try:
        perf_analyzer = PerfAnalyzer.find(_ROOT)
        with tempfile.TemporaryDirectory(prefix="mlcls-bench-") as folder:
            run_benchmark(arguments, perf_analyzer, Path(folder))
    except MlclsError as error:
        print(f"client_throughput: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def run_benchmark(arguments: argparse.Namespace, perf_analyzer: PerfAnalyzer, folder: Path) -> None:
    """Measure both in turns at each concurrency and print medians and ratios; then measure the client's memory."""
    images = write_images(folder / "images", arguments.images)
    sent = [image.read_bytes() for image in images[:PERF_ANALYZER_IMAGES]]
    data = write_input_data(folder / "images.json", sent)
    print(format_machine(describe_machine()))
    per_turn = len(images) // arguments.rounds
    options = ServerOptions.on_free_ports(arguments.repository, arguments.model)
    with TritonServer(options) as server, create_model(arguments.model, url=server.grpc_url) as model:
        measure_client(model, images[:PERF_ANALYZER_IMAGES], 16)  # warm-up
        print(f"{'in flight':>9}{'client, images/s':>18}{'perf_analyzer':>15}{'ratio':>7}   ratio of each turn")
        for concurrency in arguments.concurrency:
            rates: list[tuple[float, float]] = []
            for turn in range(arguments.rounds):
                part = images[turn * per_turn : (turn + 1) * per_turn]

                def ask_client(part: list[Path] = part, concurrency: int = concurrency) -> float:
                    return measure_client(model, part, concurrency)

                def ask_perf_analyzer(concurrency: int = concurrency) -> float:
                    load = Load(arguments.model, "grpc", server.grpc_url, data, concurrency)
                    return perf_analyzer.measure_requests(load, per_turn).images_per_s

                if turn % 2:
                    theirs, ours = ask_perf_analyzer(), ask_client()
                else:
                    ours, theirs = ask_client(), ask_perf_analyzer()
                rates.append((ours, theirs))
            ours, theirs = (statistics.median(column) for column in zip(*rates, strict=True))
            turns = ", ".join(f"{one / other:.2f}" for one, other in rates)
            ratio = sum(one for one, _ in rates) / sum(other for _, other in rates)
            print(f"{concurrency:9}{ours:18.1f}{theirs:15.1f}{ratio:7.2f}   {turns}", flush=True)
        measure_memory(model, folder / "images", len(images))


def write_images(folder: Path, count: int) -> list[Path]:
    """Write JPEG files of 640x427 with soft shapes and some grain, all different, of 40 to 60 kB."""
    folder.mkdir()
    random = np.random.default_rng(0)
    grain = random.integers(-6, 7, (*_SIZE, 3))
    paths = []
    for number in tqdm(range(count), desc="generating images", unit=" images", disable=None):
        coarse = Image.fromarray(random.integers(0, 256, (12, 18, 3), dtype=np.uint8))
        shapes = np.asarray(coarse.resize(_SIZE[::-1], Image.Resampling.BICUBIC), dtype=np.int16)
        pixels = np.clip(shapes + np.roll(grain, number * 7, axis=(0, 1)), 0, 255).astype(np.uint8)
        paths.append(folder / f"{number}.jpg")
        Image.fromarray(pixels).save(paths[-1], quality=88)
    return paths


def measure_client(model: Model, images: list[Path], concurrency: int) -> float:
    """Return the images per second of one `predict` call."""
    began = time.monotonic()
    answered = sum(1 for result in model.predict(images, concurrency=concurrency) if result.scores is not None)
    if answered != len(images):
        raise MlclsError(f"Expected {len(images)} answers, got {answered}.")
    return answered / (time.monotonic() - began)


def measure_memory(model: Model, folder: Path, count: int) -> None:
    """Process the whole folder in one call and print the client's resident memory along the way."""
    process = psutil.Process()
    began, samples = time.monotonic(), []
    for number, _ in enumerate(model.predict(folder), start=1):
        if number % max(1, count // 10) == 0:
            samples.append(process.memory_info().rss / 2**20)
    rate = count / (time.monotonic() - began)
    print(f"The folder in one call, default window: {rate:.1f} images/s; resident memory at each tenth, MiB:")
    print("  " + " ".join(f"{sample:.0f}" for sample in samples))


if __name__ == "__main__":
    sys.exit(main())
