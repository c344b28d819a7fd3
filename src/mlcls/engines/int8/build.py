"""Build the INT8 engine for CPUs: NNCF quantizes it on the user's photos, and the gate checks it.

`build` is what `mlcls build-engine --engine int8` runs. `build_int8` first quantizes everything. If the gate rejects
that, the parts of the graph that INT8 hurts most, as measured on the photos, go back to FP32 one after the other. If
too little is left in INT8, the build fails.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from mlcls.base.files import held_folder, naming
from mlcls.base.machine import read_cpu_flags, warn_about_int8
from mlcls.conversion.onnx_file import read_onnx
from mlcls.engines.building import BuildRequest, describe_report
from mlcls.engines.gate import LIMITS, GateReport, Limits, run_gate
from mlcls.engines.int8.quantization import (
    check_quantized,
    count_products,
    quantize_graph,
    restore_nodes,
    split_graph,
)
from mlcls.engines.runners import DecodingRunner, OpenVinoRunner
from mlcls.errors import ImageError, MissingExtraError, ParityError
from mlcls.images.photos import PhotoFiles
from mlcls.images.transforms import preprocess
from mlcls.model.spec import ModelSpec
from mlcls.repository.manifest import EngineRecord, tool_versions
from mlcls.repository.names import INT8_FILE, ONNX_FILE

if TYPE_CHECKING:
    import onnx

# One photo in three is for the gate, the others for the calibration: ranges must hold on other photos too.
GATE_SHARE: Final = 3

# Different photos needed. A range is what these photos happen to reach: the logits of a trained PP-LCNet_x1_0 had a
# signal-to-noise ratio of 11 dB when calibrated on 8 photos, 16 on 32, 18 on 100 and on 300.
MIN_PHOTOS: Final = 48

# Most photos in the calibration set; further ones go to the gate.
MAX_CALIBRATION_PHOTOS: Final = 200

# Photos of the calibration set on which the parts are tried.
_RANKING_PHOTOS: Final = 24

# Share of the matrix products that must stay in INT8; with less, the engine is hardly faster than FP32.
MIN_INT8_SHARE: Final = 0.5


@dataclasses.dataclass(frozen=True)
class Int8Build:
    """An INT8 engine that passed the gate.

    Attributes:
        staged: The ONNX file, for `ModelVersion.add_engine`.
        report: The gate's report.
        kept: Names of the parts that stayed in FP32, the one that INT8 hurts most first.
        int8_share: Share of the matrix products that run in INT8.
        calibration_photos: How many photos the ranges come from.
    """

    staged: Path
    report: GateReport
    kept: tuple[str, ...]
    int8_share: float
    calibration_photos: int


def build(request: BuildRequest) -> Iterator[str]:
    """Build the INT8 graph, put it into the repository once it has passed the gate, and yield lines for the user.

    Raises:
        ParityError: No INT8 graph passes; the repository is unchanged.
        ImageError: There are too few photos, or one cannot be read.
        ConversionError: NNCF cannot quantize the graph.
        RepositoryError: The model is not imported, or its folder is mixed up.
    """
    version = request.version
    manifest = request.check_fp32()
    version.repository.require_writable(version.name)
    labeled = request.open_photos()
    photos = PhotoFiles(labeled.paths)  # never the sample photos: the ranges must be those of the user's
    with held_folder(version.repository.root) as temporary:
        onnx_path, limits = version.engine_folder / ONNX_FILE, LIMITS["int8"]
        built = build_int8(onnx_path, version.spec, photos, temporary, limits=limits, targets=labeled.targets)
        size_bytes = built.staged.stat().st_size
        counts = {"kept_in_fp32": list(built.kept), "calibration_photos": built.calibration_photos}
        gate = {**built.report.to_dict(), **counts}
        tools = tool_versions("nncf", "onnx", "onnxruntime", "openvino")
        record = EngineRecord(INT8_FILE, "int8", manifest.digests(ONNX_FILE), tools, gate=(gate,))
        version.add_engine(built.staged, record)
    yield (
        f"{version.engine_folder / INT8_FILE}: {size_bytes / 1e6:.1f} MB, {built.int8_share:.0%} of the matrix "
        f"products in INT8, in FP32: {', '.join(built.kept) or 'none'}"
    )
    yield from describe_report(built.report)
    yield f"Serve it: mlcls serve {version.name} --target int8"
    if warning := warn_about_int8(read_cpu_flags()):
        yield warning


def build_int8(
    onnx_path: Path,
    spec: ModelSpec,
    photos: Sequence[bytes],
    folder: Path,
    *,
    limits: Limits = LIMITS["int8"],
    targets: npt.NDArray[np.bool_] | None = None,
) -> Int8Build:
    """Quantize a served FP32 graph, run the gate, and write the graph to a folder.

    Args:
        onnx_path: The FP32 graph.
        spec: The model's spec.
        photos: Encoded photos of what the model will see; at least `MIN_PHOTOS` different ones.
        folder: Where the file is written; nothing else is left there.
        limits: What the gate allows.
        targets: (N, num_labels) which labels each photo has, for mAP; None if not known.

    Raises:
        ImageError: There are too few different photos, or one cannot be decoded.
        ParityError: The gate rejects the engine, even with as many parts in FP32 as allowed.
        ConversionError: NNCF cannot quantize the graph.
        MissingExtraError: nncf or another package is not installed.
    """
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise MissingExtraError("int8", str(error.name)) from error
    for_calibration, for_gate = _divide_photos(photos)
    model = read_onnx(onnx_path)
    pixels = np.stack([preprocess(photos[index], spec.transform) for index in for_calibration])
    quantized = quantize_graph(model, pixels)
    gate_photos = [photos[index] for index in for_gate]
    gate_targets = None if targets is None else targets[for_gate]
    staged = folder / INT8_FILE
    fp32 = OpenVinoRunner(onnx_path, spec)
    ranking = pixels[:_RANKING_PHOTOS]
    expected = _score_alone(fp32, ranking)

    def load(candidate: onnx.ModelProto) -> OpenVinoRunner:
        staged.unlink(missing_ok=True)  # OpenVINO may still have the last one mapped
        with naming(staged):
            onnx.save(candidate, str(staged))
        return OpenVinoRunner(staged, spec)

    def measure(candidate: onnx.ModelProto) -> float:
        return float(np.abs(_score_alone(load(candidate), ranking) - expected).mean())

    reference = DecodingRunner(fp32, spec)
    reference.name = "FP32 on OpenVINO"
    rejected: list[tuple[GateReport, tuple[str, ...]]] = []
    for kept, int8_share, candidate in _climb_down(model, quantized, measure):
        runner = DecodingRunner(load(candidate), spec)
        runner.name = "INT8 on OpenVINO"
        report = run_gate(reference, runner, gate_photos, spec.thresholds, limits, gate_targets)
        if report.is_blind:
            staged.unlink()
            raise ParityError(
                f"The scores of two photos differ by only {report.spread:.1e}: answers swapped between them would "
                f"pass; give photos of the model's labels, each different."
            )
        if not report.failures:
            return Int8Build(staged, report, kept, int8_share, len(pixels))
        rejected.append((report, kept))
    staged.unlink()
    report, kept = min(rejected, key=lambda each: each[0].mean_difference)
    raise report.error(
        f"This is the best INT8 graph with up to {1 - MIN_INT8_SHARE:.0%} of the network kept in FP32 "
        f"(here: {', '.join(kept) or 'nothing'}). Nothing was written; serve FP32, or give more photos of what the "
        f"model really sees."
    )


def _score_alone(runner: OpenVinoRunner, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    return np.concatenate([runner.scores(image[None]) for image in pixels])


def _divide_photos(photos: Sequence[bytes]) -> tuple[list[int], list[int]]:
    """Return indices of the photos for the calibration and for the gate; copies of a photo count once."""
    different: dict[bytes, int] = {}
    for index, photo in enumerate(photos):
        different.setdefault(hashlib.sha256(photo).digest(), index)
    indices = list(different.values())
    if len(indices) < MIN_PHOTOS:
        raise ImageError(
            f"Expected at least {MIN_PHOTOS} different photos of what the model will see, got {len(indices)}: an INT8 "
            f"engine has the ranges of its photos. Give files or folders with --photos."
        )
    for_gate = indices[::GATE_SHARE]
    for_calibration = [index for index in indices if index not in set(for_gate)]
    return for_calibration[:MAX_CALIBRATION_PHOTOS], for_gate + for_calibration[MAX_CALIBRATION_PHOTOS:]


def _climb_down(
    model: onnx.ModelProto, quantized: onnx.ModelProto, measure: Callable[[onnx.ModelProto], float]
) -> Iterator[tuple[tuple[str, ...], float, onnx.ModelProto]]:
    """Yield graphs from all INT8 down to `MIN_INT8_SHARE`, with the parts kept in FP32 and the share of INT8 products.

    The parts that INT8 hurts most go back to FP32 first: alone in FP32 they bring the scores, whose difference
    `measure` returns, nearest to FP32's.
    """
    from tqdm import tqdm

    yield (), 1.0, quantized
    parts = split_graph(model)
    total = count_products(model, frozenset().union(*parts.values()))
    errors = {
        name: measure(restore_nodes(quantized, model, nodes))
        for name, nodes in tqdm(parts.items(), desc="trying parts in FP32", unit="part", leave=False, disable=None)
    }
    kept: tuple[str, ...] = ()
    for name in sorted(parts, key=lambda name: errors[name]):
        nodes = frozenset().union(*(parts[each] for each in (*kept, name)))
        share = 1 - count_products(model, nodes) / total
        if share < MIN_INT8_SHARE:
            continue  # a smaller one may still fit
        kept = (*kept, name)
        restored = restore_nodes(quantized, model, nodes)
        check_quantized(restored, model)
        yield kept, share, restored
