"""Measure what lower precisions cost and gain on a CPU: `python -m benchmarks.speed.precision_price`.

The cost is measured on the demo task, whose ground truth is known: differences of scores, flipped labels, mAP. INT8 is
the engine that `mlcls build-engine` builds. bf16 runs natively if the processor supports it; otherwise a float32 graph
that rounds every weight and every result to bf16 replaces it, as the table says. The gain is measured on an official
architecture, in turns with float32.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.machine import describe_machine
from benchmarks.speed.turns import take_turns
from demo.dataset import write_scenes
from demo.recipe import DEMO_NAME, DemoRecipe
from mlcls.base.files import write_bytes
from mlcls.base.machine import find_bf16_units, find_int8_units, format_machine, read_cpu_flags
from mlcls.conversion.onnx_file import read_onnx
from mlcls.engines.fp16.conversion import element_types
from mlcls.engines.gate import LIMITS, GateReport, run_gate
from mlcls.engines.int8.build import build_int8
from mlcls.engines.int8.quantization import quantize_graph
from mlcls.engines.openvino import OpenVinoEngine
from mlcls.engines.runners import DecodingRunner, OnnxRuntimeRunner, OpenVinoRunner, Runner
from mlcls.errors import MlclsError
from mlcls.images.photos import photo_images
from mlcls.images.transforms import preprocess
from mlcls.model.spec import ModelSpec
from mlcls.releases.importing import import_model
from mlcls.repository.models import Repository
from mlcls.repository.names import ONNX_FILE
from mlcls.tuning.closed_loop import run_closed_loop

_SUFFIX: Final = ".exact"

# Scenes for INT8 calibration and its check; the cost is measured on others.
_CALIBRATION_SCENES: Final = 150
_CALIBRATION_SEED: Final = 1


def round_like_bf16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with every float32 weight and every float32 result of an operation rounded to bf16.

    Sums within an operation stay in float32, as on processors with bf16 units. An engine that fuses operations, or
    keeps some in float32, rounds less often than this.

    Args:
        model: A served FP32 graph; its `pixels` and `logits` keep their names and types.

    Returns:
        A graph of float32 operations and casts.
    """
    rounded = onnx.ModelProto()
    rounded.CopyFrom(model)
    floats = {name for name, element_type in element_types(model).items() if element_type == TensorProto.FLOAT}
    for initializer in rounded.graph.initializer:
        if initializer.data_type == TensorProto.FLOAT:
            values = round_to_bf16(numpy_helper.to_array(initializer))
            initializer.CopyFrom(numpy_helper.from_array(values, initializer.name))
    nodes = list(rounded.graph.node)
    del rounded.graph.node[:]
    for node in nodes:
        casts = []
        for index, name in enumerate(node.output):
            if name in floats:
                node.output[index] = name + _SUFFIX
                casts.append(helper.make_node("Cast", [name + _SUFFIX], [f"{name}.bf16"], to=TensorProto.BFLOAT16))
                casts.append(helper.make_node("Cast", [f"{name}.bf16"], [name], to=TensorProto.FLOAT))
        rounded.graph.node.extend([node, *casts])
    del rounded.graph.value_info[:]
    return rounded


def round_to_bf16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return float32 numbers rounded to the nearest bf16, ties to even, as float32 of that shape; no NaN allowed."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return rounded.view(np.float32).reshape(values.shape)


@dataclasses.dataclass(frozen=True)
class _Graph:
    """A served model's FP32 graph."""

    path: Path
    spec: ModelSpec


def main() -> int:
    """Parse the arguments and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--demo-model", type=Path, default=Path("demo_model/inference"), help="default: %(default)s")
    parser.add_argument("--scenes", type=int, default=1000, help="scenes of the demo task (default: %(default)s)")
    parser.add_argument("--repository", type=Path, default=Path("model_repository"), help="default: %(default)s")
    parser.add_argument(
        "--model", default="PP-LCNet_x1_0_ML", help="imported model whose speed is measured (default: %(default)s)"
    )
    parser.add_argument("--turns", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a window (default: %(default)s)")
    arguments = parser.parse_args()
    try:
        print(format_machine(describe_machine()))
        with tempfile.TemporaryDirectory(prefix="mlcls-price-") as folder:
            print(_measure_price(arguments.demo_model, Path(folder), arguments.scenes), flush=True)
            spec = Repository(arguments.repository).active(arguments.model).spec
            graph = _Graph(Repository(arguments.repository).active(arguments.model).engine_folder / ONNX_FILE, spec)
            print(_measure_gain(graph, Path(folder), arguments.turns, arguments.seconds))
    except MlclsError as error:
        print(f"precision_price: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _measure_price(demo_model: Path, work: Path, count: int) -> str:
    """Return the table of drift, flips and mAP on scenes of the demo task."""
    side = DemoRecipe().side
    spec = import_model(str(demo_model), Repository(work / "repository"), name=DEMO_NAME).spec
    demo = _Graph(Repository(work / "repository").active(DEMO_NAME).engine_folder / ONNX_FILE, spec)
    scenes, targets = _read_scenes(work / "scenes", count, side, DemoRecipe().seed)
    calibration, calibration_targets = _read_scenes(work / "calibration", _CALIBRATION_SCENES, side, _CALIBRATION_SEED)
    built = build_int8(demo.path, spec, calibration, work, targets=calibration_targets)
    candidates: Mapping[str, Runner] = {
        f"INT8, {built.int8_share:.0%} of the products": OpenVinoRunner(built.staged, spec),
        **_bf16_runner(demo, work),
    }
    reference = DecodingRunner(OpenVinoRunner(demo.path, spec), spec)
    lines = ["", "| demo task | highest difference | mean | flipped decisions | mAP |", "|---|---|---|---|---|"]
    report: GateReport | None = None
    for name, runner in candidates.items():
        report = run_gate(
            reference, DecodingRunner(runner, spec), scenes, spec.thresholds, LIMITS["int8"], targets, batch_sizes=(1,)
        )
        lines.append(
            f"| {name} | {report.max_difference:.1e} | {report.mean_difference:.1e} | {report.flips} of "
            f"{len(scenes) * spec.num_labels} ({report.flip_rate:.2%}) | {report.candidate_map:.4f} |"
        )
    if report is not None:
        lines.insert(3, f"| FP32 | | | | {report.reference_map:.4f} |")
    return "\n".join(lines)


def _bf16_runner(graph: _Graph, work: Path) -> dict[str, Runner]:
    """Return a bf16 runner: native if the processor supports it, otherwise by rounding."""
    if find_bf16_units(read_cpu_flags()):
        return {"bf16": OpenVinoRunner(graph.path, graph.spec, precision="bf16")}
    path = work / "bf16.onnx"
    write_bytes(path, round_like_bf16(read_onnx(graph.path)).SerializeToString())
    return {"bf16, by rounding": OnnxRuntimeRunner(path, graph.spec)}


def _read_scenes(folder: Path, count: int, side: int, seed: int) -> tuple[list[bytes], npt.NDArray[np.bool_]]:
    names, targets = write_scenes(folder, "test", count, side, seed)
    return [(folder / name).read_bytes() for name in names], targets


def _measure_gain(graph: _Graph, work: Path, turns: int, seconds: float) -> str:
    """Return the table of the bare engine's images per second, in turns with float32."""
    pixels = np.stack([preprocess(photo, graph.spec.transform) for photo in photo_images([], 8)])
    quantized = work / "int8.onnx"
    write_bytes(quantized, quantize_graph(read_onnx(graph.path), pixels).SerializeToString())
    flags = read_cpu_flags()
    engines = {"FP32": OpenVinoEngine(graph.path, graph.spec), "INT8": OpenVinoEngine(quantized, graph.spec)}
    if find_bf16_units(flags):
        engines["bf16"] = OpenVinoEngine(graph.path, graph.spec, precision="bf16")
    cores = len(os.sched_getaffinity(0))
    others = [name for name in engines if name != "FP32"]
    measured = take_turns(lambda name: _images_per_s(engines[name], pixels[:cores], seconds), "FP32", others, turns)
    units = (*find_int8_units(flags), *find_bf16_units(flags))
    lines = [
        "",
        f"{graph.spec.name} on a processor with {', '.join(units) or 'no units for either'}, pixels in:",
        "",
        "| engine | images/s | against FP32 | in single turns |",
        "|---|---|---|---|",
        f"| FP32 | {measured.values('FP32').median:.1f} | 1 | |",
    ]
    for name in others:
        ratio = measured.ratio(name, "FP32")
        lines.append(
            f"| {name} | {measured.values(name).median:.1f} | {ratio.median:.2f} | {ratio.lowest:.2f} to "
            f"{ratio.highest:.2f} |"
        )
    return "\n".join(lines)


def _images_per_s(engine: OpenVinoEngine, pixels: npt.NDArray[np.uint8], seconds: float) -> float:
    """Return the throughput of one caller whose batches have an image for each core."""

    def make_call() -> Callable[[], object]:
        return lambda: engine.logits(pixels)

    return run_closed_loop(make_call, 1, seconds).images_per_s * len(pixels)


if __name__ == "__main__":
    sys.exit(main())
