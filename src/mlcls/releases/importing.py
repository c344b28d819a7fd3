"""Import a PaddleX inference model (folder, archive, URL or catalog name) into the repository."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from mlcls.base.files import held_folder, naming, sha256_of
from mlcls.engines.gate import BATCH_SIZES, PROBED_IMAGES, GateReport, run_gate
from mlcls.images.photos import photo_images
from mlcls.model.spec import ModelSpec
from mlcls.paddle.parameters import check_parameters
from mlcls.paddle.sources import open_source
from mlcls.repository.manifest import EngineRecord, tool_versions
from mlcls.repository.models import Repository
from mlcls.repository.names import ONNX_FILE, check_name
from mlcls.repository.publishing import add_model, require_unversioned
from mlcls.repository.staging import ConvertedVersion

# Packages that take part in a conversion.
_TOOLS: Final = ("paddlepaddle", "paddle2onnx", "onnx", "onnxslim", "onnxruntime", "numpy")


@dataclasses.dataclass(frozen=True)
class ImportReport:
    """What an import did.

    Attributes:
        spec: The spec that was written.
        parity: The converted model's scores against Paddle's.
    """

    spec: ModelSpec
    parity: GateReport


def import_model(
    source: str,
    repository: Repository,
    *,
    name: str | None = None,
    photos: Sequence[Path] = (),
    replace_versions: bool = False,
    batch_sizes: Sequence[int] = BATCH_SIZES,
) -> ImportReport:
    """Convert a PaddleX model, check it against Paddle on real photos and add it to the repository.

    Nothing is written to the repository unless the check passes; until then, a model of the same name stays.

    Args:
        source: See `open_source`.
        repository: The model repository.
        name: Name to serve the model under; by default PaddleX's.
        photos: Photos for the check; by default crops of scikit-learn's two sample photos.
        replace_versions: Whether to replace a model that has several versions.
        batch_sizes: Batch sizes of the check; fewer are faster.

    Raises:
        ParityError: The converted model's scores differ from Paddle's by more than the limit, or a label flips.
        ConversionError: The graph cannot be converted.
        MlclsError: See `open_source` and `add_model`.
    """
    converted = convert_model(source, repository, name, photos, replace_versions, batch_sizes)
    with converted as (report, staged):
        add_model(repository, staged, replace_versions=replace_versions)
    return report


@contextlib.contextmanager
def convert_model(
    source: str,
    repository: Repository,
    name: str | None = None,
    photos: Sequence[Path] = (),
    replace_versions: bool = True,
    batch_sizes: Sequence[int] = BATCH_SIZES,
) -> Iterator[tuple[ImportReport, ConvertedVersion]]:
    """Convert a PaddleX model and check it, as `import_model` does, in a staging folder of the repository.

    Yields:
        What the conversion found, and the version to add; its file is removed when the block ends, unless it was moved.

    Raises:
        MlclsError: See `import_model`.
    """
    import onnx

    from mlcls.conversion.to_onnx import export_onnx
    from mlcls.engines.runners import DecodingRunner, OnnxRuntimeRunner, PaddleRunner

    repository.require_writable(name)  # before the download
    with open_source(source) as model:
        spec = model.make_spec(name)
        check_name(spec.name)
        repository.require_writable(spec.name)
        if not replace_versions:
            require_unversioned(repository, spec.name)
        check_parameters(model.graph, model.parameters)
        graph = export_onnx(model.graph, model.parameters, spec)
        spec = msgspec.structs.replace(spec, source_activation=graph.source_activation)
        repository.root.mkdir(parents=True, exist_ok=True)
        with held_folder(repository.root) as temporary:
            onnx_path = temporary / ONNX_FILE
            with naming(onnx_path):
                onnx.save(graph.model, str(onnx_path))
            parity = run_gate(
                DecodingRunner(PaddleRunner(model, spec), spec),
                DecodingRunner(OnnxRuntimeRunner(onnx_path, spec), spec),
                photo_images(photos, PROBED_IMAGES),
                spec.thresholds,
                batch_sizes=batch_sizes,
            )
            parity.require("Nothing was written; please report the model.")
            spec = msgspec.structs.replace(spec, onnx_sha256=sha256_of(onnx_path))
            record = EngineRecord(
                ONNX_FILE, "fp32", dict(spec.source_sha256), tool_versions(*_TOOLS), gate=(parity.to_dict(),)
            )
            yield ImportReport(spec, parity), ConvertedVersion(spec, onnx_path, record)
