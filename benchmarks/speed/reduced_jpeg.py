"""Measure the cost and gain of decoding large JPEG files at a reduced scale: `python -m benchmarks.speed.reduced_jpeg`.

The cost is measured on the demo task, whose ground truth is known: differences of scores, flipped labels, mAP. Its
scenes, four times as large as the network's input, are enlarged until the reduced scale leaves exactly as many pixels
as the setting requires, which is its worst case. The gain is the time of decoding and resizing.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from benchmarks.machine import describe_machine
from demo.dataset import write_scenes
from demo.recipe import DEMO_NAME, DemoRecipe
from mlcls.base.machine import format_machine
from mlcls.engines.runners import OpenVinoRunner
from mlcls.errors import MlclsError
from mlcls.images.settings import DEFAULT_IMAGE_SETTINGS, ImageSettings
from mlcls.images.transforms import preprocess
from mlcls.model.metrics import mean_average_precision
from mlcls.model.spec import ModelSpec
from mlcls.releases.importing import import_model
from mlcls.repository.models import Repository
from mlcls.repository.names import ONNX_FILE

# Values of `jpeg_oversampling`, by the ratio of the scenes to the network's input; their quotient is a power of two.
_SETTINGS: Final = {8: (4.0, 2.0, 1.0), 12: (3.0, 1.5)}
# Scenes are drawn at this many times the network's input, because drawing takes longer than everything else.
_DRAWN: Final = 4
_JPEG_QUALITY: Final = 90
_BATCH: Final = 50


@dataclasses.dataclass(frozen=True)
class _Reading:
    """Scenes as one setting reads them.

    Attributes:
        pixels: (N, H, W, 3) uint8 RGB.
        scores: (N, num_labels) float32.
        milliseconds: Median time of decoding and resizing one scene.
    """

    pixels: npt.NDArray[np.uint8]
    scores: npt.NDArray[np.float32]
    milliseconds: float


def main() -> int:
    """Parse the arguments and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--demo-model", type=Path, default=Path("demo_model/inference"), help="default: %(default)s")
    parser.add_argument("--scenes", type=int, default=300, help="scenes of each size (default: %(default)s)")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    try:
        print(format_machine(describe_machine()))
        with tempfile.TemporaryDirectory(prefix="mlcls-reduced-") as folder:
            print(measure(arguments.demo_model, Path(folder), arguments.scenes))
    except MlclsError as error:
        print(f"reduced_jpeg: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def measure(demo_model: Path, work: Path, count: int) -> str:
    """Return the table, with a row for each setting and size.

    Raises:
        MlclsError: The demo model cannot be imported.
    """
    spec = import_model(str(demo_model), Repository(work / "repository"), name=DEMO_NAME).spec
    runner = OpenVinoRunner(Repository(work / "repository").active(DEMO_NAME).engine_folder / ONNX_FILE, spec)
    lines = [
        "",
        "| scenes | jpeg_oversampling | decode, resize | pixels, mean of 255 | scores: highest, mean | flipped | mAP |",
        "|---|---|---|---|---|---|---|",
    ]
    names, targets = write_scenes(work / "scenes", "test", count, _DRAWN * DemoRecipe().side, DemoRecipe().seed)
    for times, settings in _SETTINGS.items():
        side = times * DemoRecipe().side
        scenes = [_enlarge(work / "scenes" / name, side) for name in names]
        whole = _read(scenes, spec, runner, DEFAULT_IMAGE_SETTINGS)
        lines.append(
            f"| {side}x{side} | null | {whole.milliseconds:.2f} ms | | | | "
            f"{mean_average_precision(whole.scores, targets):.4f} |"
        )
        for oversampling in settings:
            reduced = _read(scenes, spec, runner, ImageSettings(jpeg_oversampling=oversampling))
            lines.append(f"| {side}x{side} | {oversampling:g} | {_compare(reduced, whole, spec, targets)}")
    return "\n".join(lines)


def _enlarge(path: Path, side: int) -> bytes:
    scene = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    enlarged = cv2.resize(scene, (side, side), interpolation=cv2.INTER_CUBIC)
    return bytes(cv2.imencode(".jpg", enlarged, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1])


def _read(scenes: Sequence[bytes], spec: ModelSpec, runner: OpenVinoRunner, settings: ImageSettings) -> _Reading:
    pixels, milliseconds = [], []
    for scene in scenes:
        began = time.perf_counter()
        pixels.append(preprocess(scene, spec.transform, settings))
        milliseconds.append((time.perf_counter() - began) * 1e3)
    stacked = np.stack(pixels)
    scores = np.concatenate([runner.scores(stacked[at : at + _BATCH]) for at in range(0, len(stacked), _BATCH)])
    return _Reading(stacked, scores, statistics.median(milliseconds))


def _compare(reduced: _Reading, whole: _Reading, spec: ModelSpec, targets: npt.NDArray[np.bool_]) -> str:
    difference = np.abs(reduced.scores - whole.scores)
    thresholds = np.asarray(spec.thresholds, np.float32)
    flips = int(((reduced.scores > thresholds) != (whole.scores > thresholds)).sum())
    moved = np.abs(reduced.pixels.astype(np.int16) - whole.pixels).mean()
    return (
        f"{reduced.milliseconds:.2f} ms | {moved:.2f} | {difference.max():.3f}, {difference.mean():.4f} | "
        f"{flips} of {difference.size} ({flips / difference.size:.2%}) | "
        f"{mean_average_precision(reduced.scores, targets):.4f} |"
    )


if __name__ == "__main__":
    sys.exit(main())
