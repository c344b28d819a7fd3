"""Throughput and memory of the client on a folder of images, next to NVIDIA's perf_analyzer: `make bench-client`.

Both ask the same server over gRPC, one image a request, with the same number of requests in flight, in turns in one
run, so that a noisy machine hits both; the ratio is what carries over to another machine. Then the client goes through
the whole folder in one call, and its memory is sampled.

perf_analyzer comes in the wheel tritonclient 2.51.0, the newest whose binary runs on glibc 2.36. It is installed into a
folder of its own with what it links to: libcudart (wheel nvidia-cuda-runtime-cu12) and Debian's libb64-0d.
"""

from __future__ import annotations

import argparse
import base64
import csv
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

import numpy as np
import psutil
from PIL import Image
from tqdm import tqdm

from mlcls.errors import MlclsError
from mlcls.server import ServerOptions, TritonServer
from mlcls_client import Model, create_model

#: Of the folder's images, so many are what perf_analyzer sends again and again; it keeps them all in memory.
PERF_ANALYZER_IMAGES = 200
_SIZE = (427, 640)


def main() -> int:
    """Parses the arguments and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="PP-LCNet_x1_0_ML", help="imported model (default: %(default)s)")
    parser.add_argument("--repository", type=Path, default=Path("model_repository"), help="default: %(default)s")
    parser.add_argument("--images", type=int, default=5000, help="in the folder (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="turns (default: %(default)s)")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[16], help="requests in flight (default: 16)")
    parser.add_argument(
        "--perf-analyzer",
        type=Path,
        default=Path(".venv-perf"),
        metavar="DIR",
        help="where perf_analyzer is, or is to be installed (default: %(default)s)",
    )
    arguments = parser.parse_args()
    try:
        install_perf_analyzer(arguments.perf_analyzer)
        with tempfile.TemporaryDirectory(prefix="mlcls-bench-") as folder:
            run_benchmark(arguments, Path(folder))
    except (MlclsError, subprocess.CalledProcessError) as error:
        print(f"client_throughput: {error}", file=sys.stderr)
        return 1
    return 0


def install_perf_analyzer(folder: Path) -> None:
    """Installs perf_analyzer and the two libraries, unless that was done."""
    stamp = folder / ".installed"
    if stamp.exists():
        return
    print(f"Installing perf_analyzer into {folder} ...", flush=True)
    venv.create(folder, with_pip=True)
    packages = ["tritonclient==2.51.0", "nvidia-cuda-runtime-cu12"]
    subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "--quiet", *packages], check=True)
    subprocess.run(["apt-get", "download", "--quiet", "libb64-0d"], cwd=folder, check=True)
    (package,) = folder.glob("libb64-0d_*.deb")
    subprocess.run(["dpkg", "-x", package.name, "libb64"], cwd=folder, check=True)
    stamp.touch()


def run_benchmark(arguments: argparse.Namespace, folder: Path) -> None:
    """Measures both in turns at each concurrency, then the client's memory, and prints medians and ratios."""
    images = write_images(folder / "images", arguments.images)
    data = write_perf_analyzer_data(folder / "images.json", images[:PERF_ANALYZER_IMAGES])
    print(f"{arguments.model}, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
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
                    return measure_perf_analyzer(arguments, server.grpc_url, data, concurrency, per_turn)

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
    """Writes JPEG files of 640x427 with soft shapes and some grain, all different, 40 to 60 kB each."""
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


def write_perf_analyzer_data(path: Path, images: list[Path]) -> Path:
    """Writes images as perf_analyzer's input data.

    It takes the bytes behind `b64` as they are, so that they need the length before each element of a BYTES tensor.
    """
    elements = []
    for image in images:
        content = image.read_bytes()
        framed = len(content).to_bytes(4, "little") + content
        elements.append({"image": {"content": {"b64": base64.b64encode(framed).decode()}, "shape": [1]}})
    path.write_text(json.dumps({"data": elements}), encoding="ascii")
    return path


def measure_client(model: Model, images: list[Path], concurrency: int) -> float:
    """Images per second of one `predict` call."""
    began = time.monotonic()
    answered = sum(1 for result in model.predict(images, concurrency=concurrency) if result.scores is not None)
    if answered != len(images):
        raise MlclsError(f"Expected {len(images)} answers, got {answered}.")
    return answered / (time.monotonic() - began)


def measure_perf_analyzer(
    arguments: argparse.Namespace, url: str, data: Path, concurrency: int, request_count: int
) -> float:
    """Images per second of one run of perf_analyzer."""
    folder = arguments.perf_analyzer.resolve()
    libraries = [path.parent for name in ("libcudart.so.12", "libb64.so.0d") for path in folder.rglob(name)]
    report = data.with_suffix(".csv")
    command = [
        folder / "bin" / "perf_analyzer", "-m", arguments.model, "-i", "grpc", "-u", url, "--input-data", data,
        "--concurrency-range", str(concurrency), "--request-count", str(request_count), "-f", report,
    ]  # fmt: skip
    done = subprocess.run(
        list(map(str, command)),
        env={**os.environ, "LD_LIBRARY_PATH": ":".join(map(str, libraries))},
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise MlclsError(f"perf_analyzer failed: {(done.stderr or done.stdout)[-800:]}")
    with report.open(newline="") as file:
        (row,) = csv.DictReader(file)
    return float(row["Inferences/Second"])


def measure_memory(model: Model, folder: Path, count: int) -> None:
    """Goes through the whole folder in one call and prints the client's resident memory on the way."""
    process = psutil.Process()
    began, samples = time.monotonic(), []
    for number, _ in enumerate(model.predict(folder), start=1):
        if number % max(1, count // 10) == 0:
            samples.append(process.memory_info().rss / 2**20)
    rate = count / (time.monotonic() - began)
    print(f"The folder in one call, the usual window: {rate:.1f} images/s; resident memory at each tenth, MiB:")
    print("  " + " ".join(f"{sample:.0f}" for sample in samples))


if __name__ == "__main__":
    sys.exit(main())
