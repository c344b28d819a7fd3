"""What the builders of `mlcls build-engine` share: the request and the gate."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from mlcls.base.files import held_folder, write_bytes
from mlcls.dataset.photos import LabeledPhotos
from mlcls.engines.gate import LIMITS, PROBED_IMAGES, GateReport, run_gate
from mlcls.engines.runners import DecodingRunner, OnnxRuntimeRunner, Runner
from mlcls.images.photos import photo_images
from mlcls.repository.manifest import EngineRecord, Manifest
from mlcls.repository.models import ModelVersion
from mlcls.repository.names import ENGINE_SUFFIX, ONNX_FILE


@dataclasses.dataclass(frozen=True)
class BuildRequest:
    """What to build.

    Attributes:
        version: The version of an imported model that gets the engine.
        photos: The user's photos and folders of photos; by default crops of the sample photos.
        compute_capabilities: GPU architectures, for builders that need no GPU.
        output: Folder for engines that Triton does not serve.
        annotations: Annotation file in place of `photos`; the gate then compares mAP too.
    """

    version: ModelVersion
    photos: tuple[Path, ...] = ()
    compute_capabilities: tuple[str, ...] = ()
    output: Path | None = None
    annotations: Path | None = None

    def check_fp32(self) -> Manifest:
        """Return the engine's manifest; raise a `RepositoryError` unless the folders and the FP32 graph are right."""
        self.version.check()
        return self.version.verify(ENGINE_SUFFIX, ONNX_FILE)

    def open_photos(self) -> LabeledPhotos:
        """Return the user's photos; raise a `DatasetError` if the annotation file is wrong."""
        return LabeledPhotos.open(self.photos, self.annotations, self.version.spec.num_labels)


def add_to_repository(version: ModelVersion, record: EngineRecord, content: bytes) -> None:
    """Put an engine and its record into the repository."""
    with held_folder(version.repository.root) as temporary:
        staged = temporary / record.file
        write_bytes(staged, content)
        version.add_engine(staged, record)


def describe_report(report: GateReport) -> Iterator[str]:
    """Yield a report as lines for the user, with a warning if it says little."""
    yield str(report)
    if report.is_blind:
        yield (
            f"Warning: the scores of two photos differ by only {report.spread:.1e}: answers swapped between them would "
            f"pass; give photos of the model's labels with --photos."
        )


def compare_with_fp32(request: BuildRequest, candidate: Runner) -> GateReport:
    """Run an FP16 candidate through the gate, against the FP32 graph, which the import compared with Paddle.

    Raises:
        ImageError: A photo cannot be read.
        DatasetError: The annotation file is wrong.
    """
    spec = request.version.spec
    photos = request.open_photos()
    return run_gate(
        DecodingRunner(OnnxRuntimeRunner(request.version.engine_folder / ONNX_FILE, spec), spec),
        DecodingRunner(candidate, spec),
        photo_images(photos.paths, PROBED_IMAGES),
        spec.thresholds,
        LIMITS["fp16"],
        photos.targets,
    )
