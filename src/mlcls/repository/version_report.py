"""The report of `mlcls versions` on the versions of a model."""

from __future__ import annotations

import dataclasses
from typing import Any

from mlcls.repository.manifest import Manifest
from mlcls.repository.models import Repository
from mlcls.repository.names import POSTPROCESS_SUFFIX


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
        calibration: What the thresholds were calibrated on and for; None for the imported model's thresholds.
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
    calibration: dict[str, Any] | None


def describe_versions(repository: Repository, name: str) -> list[VersionReport]:
    """Read all versions of a model.

    Raises:
        RepositoryError: The model is unknown or not imported, or a version is damaged.
        SpecError: A spec cannot be read.
    """
    active, reports = repository.active(name), []
    for version in repository.versions(name):
        spec, manifest = version.spec, Manifest.read(version.engine_folder)
        report = VersionReport(
            version.number,
            version == active,
            manifest.created,
            version.replaced,
            spec.num_labels,
            sum(record.size_bytes for record in manifest.files.values()),
            spec.onnx_sha256 or "",
            spec.source_sha256,
            manifest.digests(*manifest.files),
            Manifest.read(version.folders[POSTPROCESS_SUFFIX]).calibration,
        )
        reports.append(report)
    return reports
