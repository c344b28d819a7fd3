"""Build every engine of the imported models and print size, times, differences and flips: `make bench-engines`.

The FP16 graphs go into the repository, as with `mlcls build-engine --engine fp16`; TensorRT-RTX engines are built for
each architecture and discarded. Prints two Markdown tables: the engines, and the effect of each level of FP32.
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

from mlcls.conversion.onnx_file import read_onnx
from mlcls.engines.building import BuildRequest
from mlcls.engines.fp16 import build as fp16_engine
from mlcls.engines.fp16.build import RoundedFp16Runner, list_levels, sample_pixels
from mlcls.engines.fp16.conversion import Protection, convert_to_fp16, count_kept
from mlcls.engines.fp16.sensitivity import measure_sensitivity
from mlcls.engines.gate import LIMITS, PROBED_IMAGES, run_gate
from mlcls.engines.runners import DecodingRunner, OnnxRuntimeRunner
from mlcls.engines.tensorrt.builder import build_engine
from mlcls.errors import MlclsError
from mlcls.images.photos import photo_images
from mlcls.model.catalog import OFFICIAL_MODELS
from mlcls.repository.manifest import Manifest
from mlcls.repository.models import ModelVersion, Repository
from mlcls.repository.names import FP16_FILE, ONNX_FILE

# The T4, the A10 and the L4.
ARCHITECTURES: Final = ("7.5", "8.6", "8.9")

Row = tuple[str, ...]


def main() -> int:
    """Parse the arguments and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repository", type=Path, default=Path("model_repository"), help="default: %(default)s")
    parser.add_argument("--models", nargs="+", metavar="MODEL", help="default: all imported official models")
    parser.add_argument("--photos", type=Path, nargs="+", default=[], metavar="PATH", help="default: sample photos")
    parser.add_argument("--without-levels", action="store_true", help="skip the second table")
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
        if not arguments.without_levels:
            print()
            head = ("model", "level", "in FP32", "highest", "mean", "flips", "passes")
            _print_table(head, (row for request in requests for row in measure_levels(request)))
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
        built = build_engine(content, version.spec, "tensorrt_rtx", [architecture])
        size_mb = len(built.plan) / 1e6
        yield (
            *(name, f"TensorRT-RTX {built.version}, {architecture}", f"{size_mb:.1f}", f"{built.build_s:.1f}"),
            *(("-",) * 4),
            "not run",
        )


def measure_levels(request: BuildRequest) -> Iterator[Row]:
    """Yield a row for each level of FP32, and for no node and only the sensitive nodes in FP32."""
    onnx_path, spec = request.version.engine_folder / ONNX_FILE, request.version.spec
    model = read_onnx(onnx_path)
    sensitivity = measure_sensitivity(model, sample_pixels(request.photos, spec.transform))
    sensitive = Protection("sensitive", nodes=sensitivity.find_sensitive())
    reference = DecodingRunner(OnnxRuntimeRunner(onnx_path, spec), spec)
    images = photo_images(request.photos, PROBED_IMAGES)
    for level in (Protection("nothing"), sensitive, *list_levels(model, sensitivity)):
        candidate = DecodingRunner(RoundedFp16Runner(convert_to_fp16(model, level), spec), spec)
        report = run_gate(reference, candidate, images, spec.thresholds, LIMITS["fp16"], batch_sizes=(8,))
        yield (
            request.version.name,
            level.name,
            f"{count_kept(model, level)} of {len(model.graph.node)}",
            f"{report.max_difference:.1e}",
            f"{report.mean_difference:.1e}",
            f"{report.flip_rate:.2%}",
            "no" if report.failures else "yes",
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
