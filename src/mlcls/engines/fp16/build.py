"""FP16 that passes the gate with as little FP32 as possible, level by level, or a refusal that says what was tried."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from mlcls.conversion.onnx_file import read_onnx
from mlcls.engines.fp16.calibration import Calibration, calibrate
from mlcls.engines.fp16.conversion import FP16_PRODUCTS, MAX_FP16, Protection, convert_to_fp16, count_kept
from mlcls.engines.fp16.rounding import round_like_fp16
from mlcls.engines.gate import GateReport
from mlcls.engines.runners import OnnxRuntimeRunner, Runner
from mlcls.errors import ConversionError, ParityError
from mlcls.images.photos import list_photos, photo_pixels
from mlcls.model.spec import ImageTransform, ModelSpec

if TYPE_CHECKING:
    import onnx
import tempfile
from collections.abc import Iterator

from mlcls.base.files import STAGING_PREFIX
from mlcls.engines.building import BuildRequest, EngineFolder, Fp32Gate, describe_report
from mlcls.repository.manifest import EngineRecord, add_engine, tool_versions
from mlcls.repository.names import FP16_FILE, ONNX_FILE

# Crops of the sample photos that the calibration runs on, and the most of the user's photos: it takes several times as
# long as an inference.
CALIBRATION_PHOTOS: Final = 4
MAX_CALIBRATION_PHOTOS: Final = 32

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

# Operations on single numbers: with these in FP32, so are the residual connections.
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

# Metadata of the ONNX file: the level, and how many nodes the calibration found delicate.
PROTECTION_KEY: Final = "mlcls.fp32_level"
DELICATE_KEY: Final = "mlcls.delicate_nodes"

Gate = Callable[[Runner], GateReport]


class RoundedFp16Runner:
    """An FP16 graph as a GPU rounds it, on a CPU; see `mlcls.engines.fp16.rounding`."""

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
    """An FP16 graph on ONNX Runtime's CPU provider, in float32 arithmetic: that it loads, and what its weights give."""

    name = "fp16 onnxruntime"

    def __init__(self, fp16: onnx.ModelProto, spec: ModelSpec, threads: int = 2) -> None:
        """Load the graph; see `RoundedFp16Runner`."""
        self._runner = OnnxRuntimeRunner(fp16.SerializeToString(), spec, threads)
        self.scores = self._runner.scores


@dataclasses.dataclass(frozen=True)
class Fp16Build:
    """An FP16 graph that passed.

    Attributes:
        model: The graph.
        protection: What stayed in FP32.
        kept: Number of nodes that stayed in FP32.
        reports: What the gate found: of the graph as a GPU rounds it, and of the graph on ONNX Runtime.
    """

    model: onnx.ModelProto
    protection: Protection
    kept: int
    reports: tuple[GateReport, ...]


def build_fp16(onnx_path: Path, spec: ModelSpec, photos: Sequence[Path], gate: Gate) -> Fp16Build:
    """Convert the served FP32 graph with the least FP32 that passes.

    Args:
        onnx_path: The served FP32 graph.
        spec: The model's spec.
        photos: The user's photos for the calibration; by default crops of the sample photos.
        gate: Holds a runner against the FP32 graph.

    Raises:
        ConversionError: No level passes; the text tells how far each was off. Or a matrix product goes beyond FP16.
        ImageError: A photo cannot be read.
    """
    import onnx

    model = read_onnx(onnx_path)
    calibration = calibrate(model, calibration_pixels(photos, spec.transform))
    _require_possible(spec, calibration)
    tried = []
    for protection in list_levels(model, calibration):
        fp16 = convert_to_fp16(model, protection)
        # the file itself says what it is
        onnx.helper.set_model_props(fp16, {PROTECTION_KEY: protection.name, DELICATE_KEY: str(len(protection.nodes))})
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
        f"most FP32: {'; '.join(tried)}. What is left in FP16 are the matrix products, and TensorRT-RTX has no FP32 "
        f"ones for compute capability 7.5. Nothing was written; serve this model in FP32 (model.onnx)."
    )


def calibration_pixels(photos: Sequence[Path], transform: ImageTransform) -> npt.NDArray[np.uint8]:
    """Return what the calibration runs on: some of the user's photos, taken evenly, or crops of the sample photos.

    Returns:
        (N, H, W, 3) uint8 RGB.

    Raises:
        ImageError: A photo cannot be read.
    """
    files = list_photos(photos)
    step = max(1, -(-len(files) // MAX_CALIBRATION_PHOTOS))
    return photo_pixels(files[::step], transform, CALIBRATION_PHOTOS)


def list_levels(model: onnx.ModelProto, calibration: Calibration) -> list[Protection]:
    """Return what to keep in FP32, from least to most; a level that adds no node to the one before is left out.

    Each keeps the nodes that the calibration found delicate, and

    1. `statistics`: normalizations, softmax, reductions, exponentials and roots. No less, even where less would pass: a
       normalization's squares leave FP16's range at 256, which a calibration on other images may not show, and these
       operations cost next to nothing.
    2. `arithmetic`: besides, all operations on single numbers, and so the residual connections.
    3. `all but products`: everything but matrix products and convolutions.
    """
    delicate = calibration.find_delicate()
    rest = frozenset(node.op_type for node in model.graph.node) - FP16_PRODUCTS
    levels = [
        Protection("statistics", STATISTICS, delicate),
        Protection("arithmetic", STATISTICS | ARITHMETIC, delicate),
        Protection("all but products", rest, delicate),
    ]
    counts = [count_kept(model, level) for level in levels]
    return [level for index, level in enumerate(levels) if index == 0 or counts[index] > counts[index - 1]]


def _require_possible(spec: ModelSpec, calibration: Calibration) -> None:
    impossible = calibration.find_impossible()
    if impossible:
        worst = sorted(impossible.items(), key=lambda item: -item[1])[:3]
        raise ConversionError(
            f"{spec.name} cannot be served in FP16: {len(impossible)} matrix products go beyond its range of "
            f"{MAX_FP16:.0f} on the calibration's images "
            f"({', '.join(f'{name}: {value:.3g}' for name, value in worst)}). "
            f"Only FP32 matrix products would hold these, and TensorRT-RTX has none for compute capability 7.5; serve "
            f"this model in FP32 (model.onnx)."
        )


def _sum_up(report: GateReport) -> str:
    return (
        f"{report.candidate}: highest difference {report.max_difference:.1e} (limit "
        f"{report.limits.max_difference:.0e}), mean {report.mean_difference:.1e} "
        f"({report.limits.max_mean_difference:.0e}), {report.flip_rate:.2%} of the decisions flip "
        f"({report.limits.max_flip_rate:.2%})"
    )


_TOOLS: Final = ("onnx", "onnxruntime", "numpy")


def build(request: BuildRequest) -> Iterator[str]:
    """Make the FP16 graph, and put it into the repository once it has passed the gate.

    Yields:
        Lines for the user.

    Raises:
        ConversionError: No FP16 graph passes; what was there stays.
        RepositoryError: The model is not imported, or its folder is mixed up.
        ImageError: A photo cannot be read.
    """
    import onnx

    folder = EngineFolder.open(request)
    photos = request.open_photos(folder.spec).paths
    built = build_fp16(folder.path / ONNX_FILE, folder.spec, photos, Fp32Gate(folder, request, "fp16"))
    record = EngineRecord(
        FP16_FILE,
        "fp16",
        folder.digests(ONNX_FILE),
        tool_versions(*_TOOLS),
        gate=tuple(report.to_dict() for report in built.reports),
    )
    with tempfile.TemporaryDirectory(prefix=STAGING_PREFIX, dir=request.root) as temporary:
        staged = Path(temporary) / FP16_FILE
        onnx.save(built.model, str(staged))
        size_bytes = staged.stat().st_size
        add_engine(folder.path, staged, record)
    yield (
        f"{folder.path / FP16_FILE}: {size_bytes / 1e6:.1f} MB, {built.kept} operations in FP32 (level "
        f"{built.protection.name})"
    )
    for report in built.reports:
        yield from describe_report(report)
