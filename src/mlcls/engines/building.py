"""What the builders of `mlcls build-engine` share: the request, the engine's folder, and the gate."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mlcls.base.files import STAGING_PREFIX
from mlcls.dataset.photos import LabeledPhotos
from mlcls.engines.gate import LIMITS, PROBED_IMAGES, GateReport, run_gate
from mlcls.engines.runners import DecodingRunner, OnnxRuntimeRunner, Runner
from mlcls.images.photos import photo_images
from mlcls.model.spec import ModelSpec
from mlcls.repository import models as repository
from mlcls.repository.manifest import EngineRecord, Manifest, Precision, add_engine, verify_folder
from mlcls.repository.names import ENGINE_SUFFIX, ONNX_FILE
from mlcls.repository.versions import engine_folder, require_version, step_folders


@dataclasses.dataclass(frozen=True)
class BuildRequest:
    """What to build.

    Attributes:
        root: The model repository.
        name: The imported model.
        photos: The user's photos and folders of photos; by default crops of the sample photos.
        compute_capabilities: GPU architectures, for builders that need no GPU.
        output: Folder for engines that Triton does not serve.
        version: Version of the model; by default the active one.
        annotations: Annotation file in place of `photos`; the gate then compares mAP too.
    """

    root: Path
    name: str
    photos: tuple[Path, ...] = ()
    compute_capabilities: tuple[str, ...] = ()
    output: Path | None = None
    version: int | None = None
    annotations: Path | None = None

    def open_photos(self, spec: ModelSpec) -> LabeledPhotos:
        """Return the user's photos.

        Raises:
            DatasetError: The annotation file is wrong.
        """
        return LabeledPhotos.open(self.photos, self.annotations, spec.num_labels)


@dataclasses.dataclass(frozen=True)
class EngineFolder:
    """The version folder of an imported model's engine.

    Attributes:
        path: The folder.
        spec: The model's spec.
        manifest: What is in it; the FP32 graph matches it.
    """

    path: Path
    spec: ModelSpec
    manifest: Manifest

    @classmethod
    def open(cls, request: BuildRequest) -> EngineFolder:
        """Find and check the folder.

        Raises:
            RepositoryError: The model is not imported, has no such version, or its FP32 graph is missing or not the one
                of the manifest.
        """
        spec = repository.read_spec(request.root, request.name)
        folder = engine_folder(request.root, request.name)
        if request.version is not None:
            require_version(request.root, request.name, request.version)
            spec = repository.read_version_spec(request.root, request.name, request.version)
            folder = step_folders(request.root, request.name, request.version)[ENGINE_SUFFIX]
        return cls(folder, spec, verify_folder(folder, folder.parent.name, [ONNX_FILE]))

    def digests(self, *files: str) -> dict[str, str]:
        """Return the SHA-256 that the manifest has for files, by name, for `EngineRecord.made_from`."""
        return {file: self.manifest.files[file].sha256 for file in files}


def add_to_repository(request: BuildRequest, folder: EngineFolder, record: EngineRecord, content: bytes) -> None:
    """Put an engine and its record into the repository."""
    with tempfile.TemporaryDirectory(prefix=STAGING_PREFIX, dir=request.root) as temporary:
        staged = Path(temporary) / record.file
        staged.write_bytes(content)
        add_engine(folder.path, staged, record)


def describe_report(report: GateReport) -> Iterator[str]:
    """Yield a report as lines for the user, with a warning if it says little."""
    yield str(report)
    if report.is_blind:
        yield (
            f"Warning: the scores of two photos differ by only {report.spread:.1e}: answers swapped between them would "
            f"pass; give photos of the model's labels with --photos."
        )


class Fp32Gate:
    """Compares runners with the FP32 graph on ONNX Runtime, which the import compared with Paddle."""

    def __init__(self, folder: EngineFolder, request: BuildRequest, precision: Precision) -> None:
        """Load the FP32 graph and the photos.

        Raises:
            ImageError: A photo cannot be read.
            DatasetError: The annotation file is wrong.
        """
        self._spec = folder.spec
        self._limits = LIMITS[precision]
        photos = request.open_photos(folder.spec)
        self._images = photo_images(photos.paths, PROBED_IMAGES)
        self._targets = photos.targets
        self._reference = DecodingRunner(OnnxRuntimeRunner(folder.path / ONNX_FILE, folder.spec), folder.spec)

    def __call__(self, candidate: Runner) -> GateReport:
        """Run the candidate through the gate."""
        decoding = DecodingRunner(candidate, self._spec)
        return run_gate(self._reference, decoding, self._images, self._spec.thresholds, self._limits, self._targets)
