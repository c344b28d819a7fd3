"""The report of `mlcls versions` on the versions of a model."""

from __future__ import annotations

from typing import Any

from mlcls.repository.manifest import Manifest
from mlcls.repository.models import Repository
from mlcls.repository.names import POSTPROCESS_SUFFIX


def describe_versions(repository: Repository, name: str) -> list[dict[str, Any]]:
    """Read all versions of a model.

    Returns:
        For each its number; whether it is `active`; when it was made, or an engine last added (ISO 8601, UTC); the
        number of the version that it replaced; the number of labels; the size of its engine's folder in bytes; the
        digests of the FP32 ONNX file, of the PaddleX model's files and of the files in the engine's folder; and what
        the thresholds were calibrated on and for, None for the imported model's thresholds.

    Raises:
        RepositoryError: The model is unknown or not imported, or a version is damaged.
        SpecError: A spec cannot be read.
    """
    active, reports = repository.active(name), []
    for version in repository.versions(name):
        spec, manifest = version.spec, Manifest.read(version.engine_folder)
        report = {
            "version": version.number,
            "active": version == active,
            "created": manifest.created,
            "replaces": version.replaced,
            "labels": spec.num_labels,
            "size_bytes": sum(record.size_bytes for record in manifest.files.values()),
            "onnx_sha256": spec.onnx_sha256 or "",
            "source_sha256": spec.source_sha256,
            "files": manifest.digests(*manifest.files),
            "calibration": Manifest.read(version.folders[POSTPROCESS_SUFFIX]).calibration,
        }
        reports.append(report)
    return reports
