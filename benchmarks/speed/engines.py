"""Build every engine of the imported models and print size, times, differences and flips: `make bench-engines`.

The FP16 graphs go into the repository, as with `mlcls build-engine --engine fp16`; TensorRT-RTX engines are built for
each architecture and discarded. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import onnxruntime

from mlcls.engines.building import BuildRequest
from mlcls.engines.fp16 import build as fp16_engine
from mlcls.engines.runners import OnnxRuntimeRunner
from mlcls.engines.tensorrt.builder import build_engine
from mlcls.errors import MlclsError
from mlcls.model.catalog import OFFICIAL_MODELS
from mlcls.repository.manifest import Manifest
from mlcls.repository.models import ModelVersion, Repository
from mlcls.repository.names import FP16_FILE, ONNX_FILE

# The T4, the A10 and the L4.
ARCHITECTURES: Final = ("7.5", "8.6", "8.9")

Row = tuple[str, ...]


def main() -> int:
    """Parse the arguments and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repository", type=Path, default=Path("model_repository"), help="default: %(default)s")
    parser.add_argument("--models", nargs="+", metavar="MODEL", help="default: all imported official models")
    parser.add_argument("--photos", type=Path, nargs="+", default=[], metavar="PATH", help="default: sample photos")
    arguments = parser.parse_args()
    repository = Repository(arguments.repository)
    names = arguments.models or [name for name in OFFICIAL_MODELS if repository.is_imported(name)]
    if not names:
        print(
            f"engines: expected an imported model in {repository}, got none; run: mlcls import MODEL", file=sys.stderr
        )
        return 1
    requests = [BuildRequest(repository.active(name), tuple(arguments.photos)) for name in names]
    try:
        print(f"{platform.machine()}, {os.cpu_count()} cores, onnxruntime {onnxruntime.__version__}\n", flush=True)
        head: Row = (
            "model",
            "engine",
            "MB",
            "built in s",
            "loaded in s",
            "highest",
            "mean",
            "flips",
            "against",
        )
        _print_table(head, (row for request in requests for row in measure_engines(request)))
    except MlclsError as error:
        print(f"engines: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def measure_engines(request: BuildRequest) -> Iterator[Row]:
    """Build all engines of a model and yield a row for each."""
    version = request.version
    started = time.perf_counter()
    for _ in fp16_engine.build(request):
        pass
    build_s = time.perf_counter() - started
    name = version.name
    yield (name, "FP32 ONNX", *_measure_onnx(version, ONNX_FILE, None), "Paddle")
    yield (name, "FP16 ONNX", *_measure_onnx(version, FP16_FILE, build_s), "FP32 ONNX")
    content = (version.engine_folder / FP16_FILE).read_bytes()
    for architecture in ARCHITECTURES:
        built = build_engine(content, version.spec, architecture)
        size_mb = len(built.plan) / 1e6
        yield (
            *(name, f"TensorRT-RTX {built.version}, {architecture}", f"{size_mb:.1f}", f"{built.build_s:.1f}"),
            *(("-",) * 4),
            "not run",
        )


def _measure_onnx(version: ModelVersion, file: str, build_s: float | None) -> Row:
    """Return size, build time, load time, and the worst gate figures in the manifest."""
    path = version.engine_folder / file
    started = time.perf_counter()
    OnnxRuntimeRunner(path, version.spec)
    load_s = time.perf_counter() - started
    reports: tuple[Any, ...] = Manifest.read(version.engine_folder).engine(file).gate
    return (
        f"{path.stat().st_size / 1e6:.1f}",
        "-" if build_s is None else f"{build_s:.0f}",
        f"{load_s:.1f}",
        f"{max(report['max_difference'] for report in reports):.1e}",
        f"{max(report['mean_difference'] for report in reports):.1e}",
        f"{max(report['flip_rate'] for report in reports):.2%}",
    )


def _print_table(head: Row, rows: Iterator[Row]) -> None:
    for row in (head, ("---",) * len(head)):
        print(f"| {' | '.join(row)} |")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
