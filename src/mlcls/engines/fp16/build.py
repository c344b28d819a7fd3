"""Build the FP16 graph: `mlcls build-engine --engine fp16`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from mlcls.conversion.onnx_file import read_onnx
from mlcls.engines.building import BuildRequest, add_to_repository, compare_with_fp32, describe_report
from mlcls.engines.fp16.conversion import convert_to_fp16, list_kept
from mlcls.engines.fp16.sensitivity import find_sensitive
from mlcls.engines.runners import OnnxRuntimeRunner
from mlcls.images.photos import list_photos, photo_pixels
from mlcls.model.spec import ImageTransform
from mlcls.repository.manifest import EngineRecord, tool_versions
from mlcls.repository.names import FP16_FILE, ONNX_FILE

# Images that sensitivity is measured on, which takes several times as long as inference: crops of the sample photos, or
# at most so many of the user's photos.
SAMPLE_CROPS: Final = 4
MAX_PHOTOS: Final = 32


def build(request: BuildRequest) -> Iterator[str]:
    """Build the FP16 graph, put it into the repository once it has passed the gate, and yield lines for the user.

    Operations whose numbers FP16 cannot hold, or not precisely enough, stay in FP32. The gate runs the graph on ONNX
    Runtime: in float32, but with the rounded weights.

    Raises:
        ConversionError: A matrix product goes beyond FP16's range, or the graph does not pass; the repository is
            unchanged.
        RepositoryError: The model is not imported, or its folder is mixed up.
        ImageError: A photo cannot be read.
    """
    version, spec = request.version, request.version.spec
    manifest = request.check_fp32()
    version.repository.require_writable(version.name)
    model = read_onnx(version.engine_folder / ONNX_FILE)
    sensitive = find_sensitive(model, sample_pixels(request.open_photos().paths, spec.transform))
    content = convert_to_fp16(model, sensitive).SerializeToString()
    runner = OnnxRuntimeRunner(content, spec)
    runner.name = "fp16 onnxruntime"
    report = compare_with_fp32(request, runner)
    report.require("Nothing was written; serve this model in FP32 (model.onnx).")
    tools = tool_versions("onnx", "onnxruntime", "numpy")
    record = EngineRecord(FP16_FILE, "fp16", manifest.digests(ONNX_FILE), tools, gate=(report.to_dict(),))
    add_to_repository(version, record, content)
    yield (
        f"{version.engine_folder / FP16_FILE}: {len(content) / 1e6:.1f} MB, {len(list_kept(model, sensitive))} of "
        f"{len(model.graph.node)} operations in FP32 ({len(sensitive)} of them sensitive on the photos)"
    )
    yield from describe_report(report)


def sample_pixels(photos: Sequence[Path], transform: ImageTransform) -> npt.NDArray[np.uint8]:
    """Return images (N, H, W, 3) uint8 RGB to measure on: evenly chosen photos, or crops of the sample photos.

    Raises:
        ImageError: A photo cannot be read.
    """
    files = list_photos(photos)
    step = max(1, -(-len(files) // MAX_PHOTOS))
    return photo_pixels(files[::step], transform, SAMPLE_CROPS)
