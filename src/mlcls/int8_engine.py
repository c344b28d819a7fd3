"""`mlcls build-engine --engine int8`: `model.int8.onnx` beside the FP32 graph that it comes from."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from mlcls.base.files import STAGING_PREFIX
from mlcls.base.machine import read_cpu_flags, warn_about_int8
from mlcls.engines.building import EngineFolder, EngineRequest, describe_report
from mlcls.engines.gate import LIMITS
from mlcls.images.photos import PhotoFiles
from mlcls.int8 import build_int8
from mlcls.repository.manifest import add_engine
from mlcls.repository.names import ONNX_FILE


def build(request: EngineRequest) -> Iterator[str]:
    """Makes the INT8 graph, and puts it into the repository once it has passed the gate.

    Yields:
        Lines for the user.

    Raises:
        ParityError: No INT8 graph passes; what was there stays.
        ImageError: There are too few photos, or one cannot be read.
        ConversionError: NNCF cannot quantise the graph.
        RepositoryError: The model is not imported, or its folder is mixed up.
    """
    folder = EngineFolder.open(request)
    labelled = request.open_photos(folder.spec)
    photos = PhotoFiles(labelled.paths)  # no sample photos stand in: the ranges must be those of the user's
    with tempfile.TemporaryDirectory(prefix=STAGING_PREFIX, dir=request.root) as temporary:
        built = build_int8(
            folder.path / ONNX_FILE,
            folder.spec,
            photos,
            Path(temporary),
            limits=LIMITS["int8"],
            targets=labelled.targets,
        )
        size_bytes = built.staged.stat().st_size
        add_engine(folder.path, built.staged, built.record)
    yield (
        f"{folder.path / built.record.file}: {size_bytes / 1e6:.1f} MB, {built.int8_share:.0%} of the matrix products "
        f"in INT8, in FP32: {', '.join(built.kept) or 'none'}"
    )
    yield from describe_report(built.report)
    yield f"Serve it: mlcls serve {request.name} --target int8"
    if warning := warn_about_int8(read_cpu_flags()):
        yield warning
