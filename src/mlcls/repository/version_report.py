"""What `mlcls versions` tells about the versions of a model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from mlcls.repository.manifest import Manifest
from mlcls.repository.models import read_spec, read_version_spec
from mlcls.repository.names import ENGINE_SUFFIX, POSTPROCESS_SUFFIX
from mlcls.repository.versions import active_version, list_versions, read_replaced, step_folders


@dataclasses.dataclass(frozen=True)
class VersionReport:
    """One version.

    Attributes:
        version: Its number.
        active: Whether the ensemble serves it.
        created: When it was made, or when an engine was last added, in ISO 8601, UTC.
        replaces: The version that was active when it was made.
        labels: Number of labels.
        size_bytes: Size of its engine's folder.
        onnx_sha256: Digest of the FP32 ONNX file.
        source_sha256: Digest of each file of the PaddleX model.
        files: Digest of each file of the engine's folder.
        calibration: What the thresholds were calibrated on and for; None where they are the imported model's.
    """

    version: int
    active: bool
    created: str
    replaces: int | None
    labels: int
    size_bytes: int
    onnx_sha256: str
    source_sha256: dict[str, str]
    files: dict[str, str]
    calibration: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)


def describe_versions(root: Path, name: str) -> list[VersionReport]:
    """Read all versions of a model.

    Raises:
        RepositoryError: The model is unknown or not imported, or a version is damaged.
        SpecError: A spec cannot be read.
    """
    read_spec(root, name)
    active = active_version(root, name)
    reports = []
    for version in list_versions(root, name):
        spec = read_version_spec(root, name, version)
        folders = step_folders(root, name, version)
        manifest = Manifest.read(folders[ENGINE_SUFFIX])
        calibration = Manifest.read(folders[POSTPROCESS_SUFFIX]).calibration
        reports.append(
            VersionReport(
                version,
                version == active,
                manifest.created,
                read_replaced(root, name, version),
                spec.num_labels,
                sum(record.size_bytes for record in manifest.files.values()),
                spec.onnx_sha256 or "",
                dict(spec.source_sha256),
                {file: record.sha256 for file, record in manifest.files.items()},
                None if calibration is None else dict(calibration),
            )
        )
    return reports
