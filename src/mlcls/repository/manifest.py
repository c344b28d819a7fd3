"""`manifest.json`: what a version folder holds, where it came from, and the checks that it passed.

Each step of a served model has one in its version folder. It names every file with its digest: `model_spec.json`
(labels, thresholds, preprocessing, activation), and the engines with the tools that made them and the reports of their
gate. The Triton backends and `mlcls serve` check it before they use a file, and refuse a folder with mixed-up files.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Literal

from mlcls.base.documents import Document, VersionedDocument, read, to_json
from mlcls.base.files import sha256_of, write_text
from mlcls.errors import RepositoryError
from mlcls.model.spec import SPEC_FILE

MANIFEST_FILE: Final = "manifest.json"

Precision = Literal["fp32", "fp16", "int8"]

_REMEDY: Final = "import the model again: mlcls import MODEL"


class FileRecord(Document, frozen=True):
    """One file of a version folder."""

    sha256: str
    size_bytes: int

    @classmethod
    def of(cls, path: Path) -> FileRecord:
        """Return the record of a file as it is now."""
        return cls(sha256_of(path), path.stat().st_size)


class EngineRecord(Document, frozen=True):
    """Where one model file came from.

    Attributes:
        file: Its name in the version folder.
        precision: Precision of its weights and activations.
        made_from: SHA-256 of each file that it was made from, by name.
        tools: Version of each package that was involved.
        built_for: For a plan, the library and its version, the GPU's name and compute capability; else empty.
        gate: The reports of the gate that it passed, see `GateReport.to_dict`.
    """

    file: str
    precision: Precision
    made_from: dict[str, str]
    tools: dict[str, str]
    built_for: dict[str, str] = {}  # noqa: RUF012 (msgspec copies it)
    gate: tuple[dict[str, Any], ...] = ()


class Manifest(VersionedDocument, frozen=True, omit_defaults=True):
    """What a version folder holds.

    Attributes:
        step: Name of the Triton model that the folder belongs to, `NAME_engine` for example.
        created: When, in ISO 8601, UTC.
        files: Each file of the folder except the manifest, by name.
        engines: One record for each model file.
        calibration: For postprocess, if the spec's thresholds were calibrated: on what, for which objective, and with
            which gain; see `mlcls.commands.calibrate`.
    """

    step: str
    created: str
    files: dict[str, FileRecord]
    engines: tuple[EngineRecord, ...]
    calibration: dict[str, Any] | None = None

    def engine(self, file: str) -> EngineRecord:
        """Return the record of a model file.

        Raises:
            RepositoryError: There is none.
        """
        for record in self.engines:
            if record.file == file:
                return record
        raise RepositoryError(
            f"The manifest of {self.step} has no {file}, only {', '.join(self.files)}; build it: mlcls build-engine."
        )

    def digests(self, *files: str) -> dict[str, str]:
        """Return the SHA-256 of files, by name: `EngineRecord.made_from`."""
        return {file: self.files[file].sha256 for file in files}

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read the manifest of a version folder.

        Raises:
            RepositoryError: It is missing or wrong.
        """
        return read(folder / MANIFEST_FILE, cls, RepositoryError, _REMEDY)


def write_manifest(
    folder: Path, step: str, engines: Iterable[EngineRecord] = (), calibration: Mapping[str, Any] | None = None
) -> Manifest:
    """Write the manifest of a folder, which names all files in it."""
    manifest = Manifest(
        step,
        datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        {path.name: FileRecord.of(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST_FILE},
        tuple(sorted(engines, key=lambda record: record.file)),
        None if calibration is None else dict(calibration),
    )
    write_text(folder / MANIFEST_FILE, to_json(manifest))
    return manifest


def verify_folder(folder: Path, step: str, files: Iterable[str] | None = None) -> Manifest:
    """Check that the version folder of a step, the Triton model that loads it, is what its manifest says.

    The content of the named files is checked, by default of all; the presence and size of each file always are.

    Raises:
        RepositoryError: The folder belongs to another step, or a file or folder in it, which the text names, is
            missing, changed or not in the manifest.
    """
    manifest, origin = Manifest.read(folder), folder / MANIFEST_FILE
    required = set(manifest.files if files is None else files)
    if manifest.step != step:
        raise RepositoryError(f"{origin}: expected the manifest of {step}, got that of {manifest.step}; {_REMEDY}.")
    for name in sorted(required - manifest.files.keys()):
        raise RepositoryError(f"{origin} has no {name}, only {', '.join(manifest.files)}; {_REMEDY}.")
    unknown = sorted({path.name for path in folder.iterdir()} - {MANIFEST_FILE, *manifest.files})
    if unknown:  # Triton runs a `model.py` or a library that it finds here
        raise RepositoryError(
            f"{folder} has files that are not in its manifest, so their origin is unknown: {', '.join(unknown[:10])}; "
            f"remove them, or build engines with mlcls build-engine."
        )
    for name, record in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise RepositoryError(f"{path} does not exist, but its manifest has it; {_REMEDY}.")
        if path.stat().st_size != record.size_bytes or (name in required and sha256_of(path) != record.sha256):
            raise RepositoryError(
                f"{path} is not the file that its manifest was written for (its size or SHA-256 differs): damaged, "
                f"edited, or copied from another model; {_REMEDY}."
            )
    return manifest


def require_same_spec(folders: Mapping[str, Path]) -> None:
    """Check that the version folders of a model's steps, by the steps' names, hold one spec, as their manifests say.

    Folders without a manifest are skipped.

    Raises:
        RepositoryError: Two of them differ.
    """
    first, known = "", ""
    for step, folder in folders.items():
        if (folder / MANIFEST_FILE).is_file():
            digest = Manifest.read(folder).digests(SPEC_FILE)[SPEC_FILE]
            first, known = first or step, known or digest
            if digest != known:
                raise RepositoryError(
                    f"{folder / SPEC_FILE} is not the same as the spec of {first}: the folders come from different "
                    f"imports; {_REMEDY}."
                )


def tool_versions(*packages: str) -> dict[str, str]:
    """Return the versions of installed packages, including mlcls; packages that are not installed are left out."""
    from importlib.metadata import PackageNotFoundError, version

    versions = {}
    for package in ("mlcls", *packages):
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions
