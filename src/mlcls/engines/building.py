"""What the builders of `mlcls build-engine` share: the request and the gate."""

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
from mlcls.repository.manifest import EngineRecord, Manifest, Precision
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
        """Check the version and its FP32 graph, and return the engine's manifest.

        Raises:
            RepositoryError: The folders do not belong together, or the FP32 graph is missing or not the manifest's.
        """
        self.version.check()
        return self.version.verify(ENGINE_SUFFIX, ONNX_FILE)

    def open_photos(self) -> LabeledPhotos:
        """Return the user's photos.

        Raises:
            DatasetError: The annotation file is wrong.
        """
        return LabeledPhotos.open(self.photos, self.annotations, self.version.spec.num_labels)


def add_to_repository(version: ModelVersion, record: EngineRecord, content: bytes) -> None:
    """Put an engine and its record into the repository."""
    with tempfile.TemporaryDirectory(prefix=STAGING_PREFIX, dir=version.repository.root) as temporary:
        staged = Path(temporary) / record.file
        staged.write_bytes(content)
        version.add_engine(staged, record)


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

    def __init__(self, request: BuildRequest, precision: Precision) -> None:
        """Load the FP32 graph and the photos.

        Raises:
            ImageError: A photo cannot be read.
            DatasetError: The annotation file is wrong.
        """
        self._spec = spec = request.version.spec
        self._limits = LIMITS[precision]
        photos = request.open_photos()
        self._images = photo_images(photos.paths, PROBED_IMAGES)
        self._targets = photos.targets
        self._reference = DecodingRunner(OnnxRuntimeRunner(request.version.engine_folder / ONNX_FILE, spec), spec)

    def __call__(self, candidate: Runner) -> GateReport:
        """Run the candidate through the gate."""
        decoding = DecodingRunner(candidate, self._spec)
        return run_gate(self._reference, decoding, self._images, self._spec.thresholds, self._limits, self._targets)
