"""The command `mlcls versions`."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any, Final

from mlcls.commands.options import add_repository_option
from mlcls.repository.manifest import Manifest
from mlcls.repository.models import read_spec, read_version_spec
from mlcls.repository.names import ENGINE_SUFFIX, POSTPROCESS_SUFFIX
from mlcls.repository.versions import active_version, list_versions, read_replaced, step_folders

NAME: Final = "versions"
SUMMARY: Final = "List the versions of a model: which is active, when each was made, from what."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("model", metavar="NAME", help="name of a model")
    parser.add_argument("--json", action="store_true", help="all hashes, as JSON")
    add_repository_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Prints a line for each version."""
    reports = describe_versions(arguments.repository, arguments.model)
    if arguments.json:
        print(json.dumps([report.to_dict() for report in reports], indent=2, ensure_ascii=False))
        return 0
    print(
        f"{'version':>7}  {'':6}  {'made':25}  {'replaced':>8}  {'labels':>6}  {'size (MB)':>9}  {'model.onnx':12}  "
        f"calibrated for"
    )
    for report in reports:
        print(
            f"{report.version:7}  {'active' if report.active else '':6}  {report.created:25}  "
            f"{report.replaces or '':8}  {report.labels:6}  {report.size_bytes / 1e6:9.1f}  {report.onnx_sha256[:12]}"
            + (f"  {report.calibration.get('objective')}" if report.calibration else "")
        )
    return 0


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
    """Reads all versions of a model.

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
