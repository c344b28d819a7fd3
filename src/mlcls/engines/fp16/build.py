"""Build the FP16 graph that passes the gate with as little FP32 as possible, or say why there is none.

`build` is what `mlcls build-engine --engine fp16` runs; `build_fp16` tries the levels of FP32 from `list_levels`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from mlcls.conversion.onnx_file import read_onnx
from mlcls.engines.building import BuildRequest, Fp32Gate, add_to_repository, describe_report
from mlcls.engines.fp16.conversion import FP16_PRODUCTS, MAX_FP16, Protection, convert_to_fp16, count_kept
from mlcls.engines.fp16.rounding import round_like_fp16
from mlcls.engines.fp16.sensitivity import Sensitivity, measure_sensitivity
from mlcls.engines.gate import GateReport
from mlcls.engines.runners import OnnxRuntimeRunner, Runner
from mlcls.errors import ConversionError, ParityError
from mlcls.images.photos import list_photos, photo_pixels
from mlcls.model.spec import ImageTransform, ModelSpec
from mlcls.repository.manifest import EngineRecord, tool_versions
from mlcls.repository.names import FP16_FILE, ONNX_FILE

if TYPE_CHECKING:
    import onnx

# Images that sensitivity is measured on, which takes several times as long as inference: crops of the sample photos, or
# at most so many of the user's photos.
SAMPLE_CROPS: Final = 4
MAX_PHOTOS: Final = 32

# Operations that sum up or exponentiate: NVIDIA's guide names normalizations and reductions as the first to keep in
# FP32 ("Precision Control", docs.nvidia.com/deeplearning/tensorrt).
STATISTICS: Final = frozenset(
    (
        "AveragePool",
        "BatchNormalization",
        "CumSum",
        "Erf",
        "Exp",
        "GlobalAveragePool",
        "GroupNormalization",
        "HardSigmoid",
        "InstanceNormalization",
        "LayerNormalization",
        "Log",
        "LogSoftmax",
        "LpNormalization",
        "Pow",
        "ReduceL1",
        "ReduceL2",
        "ReduceLogSumExp",
        "ReduceMean",
        "ReduceProd",
        "ReduceSum",
        "ReduceSumSquare",
        "Reciprocal",
        "Sigmoid",
        "Softmax",
        "Sqrt",
    )
)

# Operations on single numbers; with these in FP32, the residual connections are too.
ARITHMETIC: Final = frozenset(
    (
        "Abs",
        "Add",
        "Cast",
        "Clip",
        "Div",
        "Elu",
        "Gelu",
        "HardSwish",
        "LeakyRelu",
        "Max",
        "Min",
        "Mish",
        "Mul",
        "Neg",
        "PRelu",
        "Relu",
        "Softplus",
        "Sub",
        "Sum",
        "Tanh",
    )
)

# Metadata of the ONNX file: the level, and the number of sensitive nodes.
PROTECTION_KEY: Final = "mlcls.fp32_level"
SENSITIVE_KEY: Final = "mlcls.delicate_nodes"

Gate = Callable[[Runner], GateReport]


class RoundedFp16Runner:
    """An FP16 graph on a CPU, rounded as on a GPU; see `mlcls.engines.fp16.rounding`."""

    name = "fp16 rounded"

    def __init__(self, fp16: onnx.ModelProto, spec: ModelSpec, threads: int = 2) -> None:
        """Load the graph.

        Args:
            fp16: See `mlcls.engines.fp16.conversion.convert_to_fp16`.
            spec: The model's spec.
            threads: Threads within one operation.
        """
        self._runner = OnnxRuntimeRunner(round_like_fp16(fp16).SerializeToString(), spec, threads)
        self.scores = self._runner.scores


class Fp16Runner:
    """An FP16 graph on ONNX Runtime's CPU provider, in float32: shows that it loads, and what its weights do."""

    name = "fp16 onnxruntime"

    def __init__(self, fp16: onnx.ModelProto, spec: ModelSpec, threads: int = 2) -> None:
        """Load the graph; see `RoundedFp16Runner`."""
        self._runner = OnnxRuntimeRunner(fp16.SerializeToString(), spec, threads)
        self.scores = self._runner.scores


@dataclasses.dataclass(frozen=True)
class Fp16Build:
    """An FP16 graph that passed the gate.

    Attributes:
        model: The graph.
        protection: What stayed in FP32.
        kept: Number of nodes that stayed in FP32.
        reports: The gate's reports: of the graph rounded as on a GPU, and of the graph on ONNX Runtime.
    """

    model: onnx.ModelProto
    protection: Protection
    kept: int
    reports: tuple[GateReport, ...]


def build(request: BuildRequest) -> Iterator[str]:
    """Build the FP16 graph, and put it into the repository once it has passed the gate.

    Yields:
        Lines for the user.

    Raises:
        ConversionError: No FP16 graph passes; the repository is unchanged.
        RepositoryError: The model is not imported, or its folder is mixed up.
        ImageError: A photo cannot be read.
    """
    version = request.version
    manifest = request.check_fp32()
    photos = request.open_photos().paths
    built = build_fp16(version.engine_folder / ONNX_FILE, version.spec, photos, Fp32Gate(request, "fp16"))
    record = EngineRecord(
        FP16_FILE,
        "fp16",
        manifest.digests(ONNX_FILE),
        tool_versions("onnx", "onnxruntime", "numpy"),
        gate=tuple(report.to_dict() for report in built.reports),
    )
    content = built.model.SerializeToString()
    add_to_repository(version, record, content)
    yield (
        f"{version.engine_folder / FP16_FILE}: {len(content) / 1e6:.1f} MB, {built.kept} operations in FP32 (level "
        f"{built.protection.name})"
    )
    for report in built.reports:
        yield from describe_report(report)


def build_fp16(onnx_path: Path, spec: ModelSpec, photos: Sequence[Path], gate: Gate) -> Fp16Build:
    """Convert the served FP32 graph with the least FP32 that passes.

    Args:
        onnx_path: The served FP32 graph.
        spec: The model's spec.
        photos: The user's photos to measure sensitivity on; by default crops of the sample photos.
        gate: Compares a runner with the FP32 graph.

    Raises:
        ParityError: No level passes; the text tells how far off each was.
        ConversionError: A matrix product goes beyond FP16's range.
        ImageError: A photo cannot be read.
    """
    import onnx

    model = read_onnx(onnx_path)
    sensitivity = measure_sensitivity(model, sample_pixels(photos, spec.transform))
    _require_in_range(spec, sensitivity)
    tried = []
    for protection in list_levels(model, sensitivity):
        fp16 = convert_to_fp16(model, protection)
        # the file itself says what it is
        onnx.helper.set_model_props(fp16, {PROTECTION_KEY: protection.name, SENSITIVE_KEY: str(len(protection.nodes))})
        reports = []
        for make_runner in (RoundedFp16Runner, Fp16Runner):
            reports.append(gate(make_runner(fp16, spec)))
            if reports[-1].failures:
                break
        kept = count_kept(model, protection)
        if not reports[-1].failures:
            return Fp16Build(fp16, protection, kept, tuple(reports))
        tried.append(
            f"{protection.name} ({kept} of {len(model.graph.node)} operations in FP32): {_sum_up(reports[-1])}"
        )
    raise ParityError(
        f"Expected an FP16 graph of {spec.name} that gives the FP32 graph's answers, got none. Tried, from least to "
        f"most FP32: {'; '.join(tried)}. Only matrix products are left in FP16, and TensorRT-RTX has no FP32 ones for "
        f"compute capability 7.5. Nothing was written; serve this model in FP32 (model.onnx)."
    )


def sample_pixels(photos: Sequence[Path], transform: ImageTransform) -> npt.NDArray[np.uint8]:
    """Return images to measure sensitivity on: evenly chosen photos of the user, or crops of the sample photos.

    Returns:
        (N, H, W, 3) uint8 RGB.

    Raises:
        ImageError: A photo cannot be read.
    """
    files = list_photos(photos)
    step = max(1, -(-len(files) // MAX_PHOTOS))
    return photo_pixels(files[::step], transform, SAMPLE_CROPS)


def list_levels(model: onnx.ModelProto, sensitivity: Sensitivity) -> list[Protection]:
    """Return what to keep in FP32, from least to most; a level that adds no node to the one before is left out.

    Each level keeps the sensitive nodes, and

    1. `statistics`: normalizations, softmax, reductions, exponentials and roots. Never less, even if less would pass: a
       normalization's squares leave FP16's range at 256, which a few images may not show, and these operations cost
       next to nothing.
    2. `arithmetic`: also all operations on single numbers, and so the residual connections.
    3. `all but products`: everything except matrix products and convolutions.
    """
    sensitive = sensitivity.find_sensitive()
    rest = frozenset(node.op_type for node in model.graph.node) - FP16_PRODUCTS
    levels = [
        Protection("statistics", STATISTICS, sensitive),
        Protection("arithmetic", STATISTICS | ARITHMETIC, sensitive),
        Protection("all but products", rest, sensitive),
    ]
    counts = [count_kept(model, level) for level in levels]
    return [level for index, level in enumerate(levels) if index == 0 or counts[index] > counts[index - 1]]


def _require_in_range(spec: ModelSpec, sensitivity: Sensitivity) -> None:
    overflowing = sensitivity.find_overflowing()
    if overflowing:
        worst = sorted(overflowing.items(), key=lambda item: -item[1])[:3]
        raise ConversionError(
            f"{spec.name} cannot be served in FP16: {len(overflowing)} matrix products go beyond its range of "
            f"{MAX_FP16:.0f} on the photos ({', '.join(f'{name}: {value:.3g}' for name, value in worst)}), and "
            f"TensorRT-RTX has no FP32 ones for compute capability 7.5. Serve this model in FP32 (model.onnx)."
        )


def _sum_up(report: GateReport) -> str:
    return (
        f"{report.candidate}: highest difference {report.max_difference:.1e} (limit "
        f"{report.limits.max_difference:.0e}), mean {report.mean_difference:.1e} "
        f"({report.limits.max_mean_difference:.0e}), {report.flip_rate:.2%} of the decisions flip "
        f"({report.limits.max_flip_rate:.2%})"
    )
