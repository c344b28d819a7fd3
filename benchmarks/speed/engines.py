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
from mlcls.engines.building import EngineFolder, EngineRequest
from mlcls.engines.comparison import PROBED_IMAGES, run_gate
from mlcls.engines.fp16 import build as half_engine
from mlcls.engines.fp16.build import RoundedHalfRunner, calibration_pixels, list_levels
from mlcls.engines.fp16.calibration import calibrate
from mlcls.engines.fp16.conversion import Protection, convert_to_half, count_kept
from mlcls.engines.gate import LIMITS
from mlcls.engines.runners import DecodingRunner, OnnxRuntimeRunner
from mlcls.engines.tensorrt.builder import build_engine
from mlcls.errors import MlclsError
from mlcls.images.photos import photo_images
from mlcls.model.catalog import OFFICIAL_MODELS
from mlcls.repository import models as repository
from mlcls.repository.manifest import Manifest
from mlcls.repository.names import HALF_FILE, ONNX_FILE

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
    root: Path = arguments.repository
    names = arguments.models or [name for name in OFFICIAL_MODELS if repository.is_imported(root, name)]
    if not names:
        print(f"engines: expected an imported model in {root}, got none; run: mlcls import MODEL", file=sys.stderr)
        return 1
    requests = [EngineRequest(root, name, tuple(arguments.photos)) for name in names]
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


def measure_engines(request: EngineRequest) -> Iterator[Row]:
    """Build all engines of a model and yield a row for each."""
    name = request.name
    started = time.perf_counter()
    for _ in half_engine.build(request):
        pass
    build_s = time.perf_counter() - started
    folder = EngineFolder.open(request)
    yield (name, "FP32 ONNX", *_measure_onnx(folder, ONNX_FILE, None), "Paddle")
    yield (name, "FP16 ONNX", *_measure_onnx(folder, HALF_FILE, build_s), "FP32 ONNX")
    content = (folder.path / HALF_FILE).read_bytes()
    for architecture in ARCHITECTURES:
        built = build_engine(content, folder.spec, "tensorrt_rtx", [architecture])
        size_mb = len(built.plan) / 1e6
        yield (
            *(name, f"TensorRT-RTX {built.version}, {architecture}", f"{size_mb:.1f}", f"{built.build_s:.1f}"),
            *(("-",) * 4),
            "not run",
        )


def measure_levels(request: EngineRequest) -> Iterator[Row]:
    """Yield a row for each level of FP32, and for no node and only the delicate nodes in FP32."""
    folder = EngineFolder.open(request)
    spec = folder.spec
    model = read_onnx(folder.path / ONNX_FILE)
    calibration = calibrate(model, calibration_pixels(request.photos, spec.transform))
    delicate = Protection("calibrated", nodes=calibration.find_delicate())
    reference = DecodingRunner(OnnxRuntimeRunner(folder.path / ONNX_FILE, spec), spec)
    images = photo_images(request.photos, PROBED_IMAGES)
    for level in (Protection("nothing"), delicate, *list_levels(model, calibration)):
        candidate = DecodingRunner(RoundedHalfRunner(convert_to_half(model, level), spec), spec)
        report = run_gate(reference, candidate, images, spec.thresholds, LIMITS["fp16"], batch_sizes=(8,))
        yield (
            request.name,
            level.name,
            f"{count_kept(model, level)} of {len(model.graph.node)}",
            f"{report.max_difference:.1e}",
            f"{report.mean_difference:.1e}",
            f"{report.flip_rate:.2%}",
            "no" if report.failures else "yes",
        )


def _measure_onnx(folder: EngineFolder, file: str, build_s: float | None) -> Row:
    """Return size, build time, load time, and the worst gate figures in the manifest."""
    path = folder.path / file
    started = time.perf_counter()
    OnnxRuntimeRunner(path, folder.spec)
    load_s = time.perf_counter() - started
    reports: tuple[Any, ...] = Manifest.read(folder.path).engine(file).gate
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
