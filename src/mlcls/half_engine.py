"""`mlcls build-engine --engine fp16`: `model.fp16.onnx` beside the FP32 graph that it comes from."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from mlcls.base.files import STAGING_PREFIX
from mlcls.engines.building import EngineFolder, EngineRequest, Fp32Gate, describe_report
from mlcls.half_precision import make_half
from mlcls.repository.manifest import EngineRecord, add_engine, tool_versions
from mlcls.repository.names import HALF_FILE, ONNX_FILE

_TOOLS: Final = ("onnx", "onnxruntime", "numpy")


def build(request: EngineRequest) -> Iterator[str]:
    """Makes the FP16 graph, and puts it into the repository once it has passed the gate.

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
    half = make_half(folder.path / ONNX_FILE, folder.spec, photos, Fp32Gate(folder, request, "fp16"))
    record = EngineRecord(
        HALF_FILE,
        "fp16",
        folder.digests(ONNX_FILE),
        tool_versions(*_TOOLS),
        gate=tuple(report.to_dict() for report in half.reports),
    )
    with tempfile.TemporaryDirectory(prefix=STAGING_PREFIX, dir=request.root) as temporary:
        staged = Path(temporary) / HALF_FILE
        onnx.save(half.model, str(staged))
        size_bytes = staged.stat().st_size
        add_engine(folder.path, staged, record)
    yield (
        f"{folder.path / HALF_FILE}: {size_bytes / 1e6:.1f} MB, {half.kept} operations in FP32 (level "
        f"{half.protection.name})"
    )
    for report in half.reports:
        yield from describe_report(report)
