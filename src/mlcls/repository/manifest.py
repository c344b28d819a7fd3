"""`manifest.json`: what a version folder holds, where it came from, and the checks that it passed.

Each step of a served model has one in its version folder. It names every file with its digest: `model_spec.json`
(labels, thresholds, preprocessing, activation), and the engines with the tools that made them and the figures of their
gate. The Triton backends and `mlcls serve` check it before they use a file: a folder that was mixed up is refused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Literal, get_args

from mlcls.base.files import sha256_of, write_text
from mlcls.errors import RepositoryError
from mlcls.model.spec import SPEC_FILE

SCHEMA_VERSION: Final = 1
FILE_NAME: Final = "manifest.json"

Precision = Literal["fp32", "fp16", "int8"]

# Files that an engine could load; one that the manifest does not name is refused.
_MODEL_SUFFIXES: Final = (".onnx", ".plan", ".engine", ".xml", ".bin", ".data")


@dataclasses.dataclass(frozen=True)
class FileRecord:
    """One file of a version folder."""

    sha256: str
    size_bytes: int

    @classmethod
    def of(cls, path: Path) -> FileRecord:
        """Return the record of a file as it is now."""
        return cls(sha256_of(path), path.stat().st_size)


@dataclasses.dataclass(frozen=True)
class EngineRecord:
    """Where one model file came from.

    Attributes:
        file: Its name in the version folder.
        precision: Precision of its weights and activations.
        made_from: SHA-256 of each file that it was made from, by name.
        tools: Version of each package that took part.
        built_for: Of a plan: the library and its version, the GPU's name and compute capability; else empty.
        gate: The reports of the gate that it passed, see `GateReport.to_dict`.
    """

    file: str
    precision: Precision
    made_from: Mapping[str, str]
    tools: Mapping[str, str]
    built_for: Mapping[str, str] = dataclasses.field(default_factory=dict)
    gate: tuple[Mapping[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            raise RepositoryError(
                f"precision: expected one of {', '.join(get_args(Precision))}, got {self.precision!r}."
            )
        object.__setattr__(self, "gate", tuple(self.gate))


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a version folder holds.

    Attributes:
        step: Name of the Triton model that the folder belongs to, `NAME_engine` for example.
        created: When, in ISO 8601, UTC.
        files: Each file of the folder but the manifest, by name.
        engines: One record for each model file.
        calibration: Of postprocess, where the spec's thresholds were calibrated: on what, for what, and what it gained;
            see `mlcls.commands.calibrate`.
    """

    step: str
    created: str
    files: Mapping[str, FileRecord]
    engines: tuple[EngineRecord, ...] = ()
    calibration: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.calibration is not None and not isinstance(self.calibration, Mapping):
            raise RepositoryError(f"calibration: expected an object, got {self.calibration!r}.")

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

    def to_json(self) -> str:
        """Return the text of `manifest.json`; `from_json` gives an equal manifest back."""
        document = {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(self)}
        if self.calibration is None:
            del document["calibration"]
        return json.dumps(document, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, origin: str = FILE_NAME) -> Manifest:
        """Read the text of a `manifest.json`.

        Raises:
            RepositoryError: The text is no manifest of this version.
        """
        try:
            document = json.loads(text)
            if document.pop("schema_version") != SCHEMA_VERSION:
                raise ValueError("another schema_version")
            document["files"] = {name: FileRecord(**record) for name, record in document["files"].items()}
            document["engines"] = tuple(EngineRecord(**record) for record in document["engines"])
            return cls(**document)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, RepositoryError) as error:
            raise RepositoryError(
                f"{origin}: expected a manifest of schema version {SCHEMA_VERSION}, got a file that is none "
                f"({error}); import the model again."
            ) from None

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read the manifest of a version folder.

        Raises:
            RepositoryError: It is missing or wrong.
        """
        path = folder / FILE_NAME
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise RepositoryError(f"{path} does not exist; import the model: mlcls import MODEL.") from None
        except (OSError, UnicodeDecodeError) as error:
            raise RepositoryError(f"{path} cannot be read: {error}") from None
        return cls.from_json(text, str(path))


def write_manifest(
    folder: Path, step: str, engines: Iterable[EngineRecord] = (), calibration: Mapping[str, Any] | None = None
) -> Manifest:
    """Write the manifest of a folder, with all files that are in it."""
    files = {path.name: FileRecord.of(path) for path in sorted(folder.iterdir()) if path.name != FILE_NAME}
    manifest = Manifest(step, _now(), files, tuple(sorted(engines, key=lambda record: record.file)), calibration)
    write_text(folder / FILE_NAME, manifest.to_json())
    return manifest


def verify_folder(folder: Path, step: str, files: Iterable[str] | None = None) -> Manifest:
    """Check that a version folder is what its manifest says.

    Args:
        folder: The version folder.
        step: Name of the Triton model that it is loaded as.
        files: Names of the files whose content is checked, by default all; the presence and the size of each file are
            checked in any case.

    Raises:
        RepositoryError: The folder is another step's, or a file is missing, changed or not in the manifest; the text
            names it.
    """
    manifest = Manifest.read(folder)
    remedy = "import the model again"
    if manifest.step != step:
        raise RepositoryError(
            f"{folder / FILE_NAME}: expected the manifest of {step}, got that of {manifest.step}; {remedy}."
        )
    required = set(manifest.files) if files is None else set(files)
    for name in sorted(required - set(manifest.files)):
        raise RepositoryError(f"{folder / FILE_NAME} has no {name}, only {', '.join(manifest.files)}; {remedy}.")
    for path in sorted(folder.iterdir()):
        if path.suffix in _MODEL_SUFFIXES and path.name not in manifest.files:
            raise RepositoryError(
                f"{path} is not in the manifest beside it: nothing says where it came from; remove it, or build it "
                f"with mlcls build-engine."
            )
    for name, record in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise RepositoryError(f"{path} does not exist, but its manifest has it; {remedy}.")
        if path.stat().st_size != record.size_bytes or (name in required and sha256_of(path) != record.sha256):
            raise RepositoryError(
                f"{path} is not the file that its manifest was written for (its size or SHA-256 differs): damaged, "
                f"edited, or copied from another model; {remedy}."
            )
    return manifest


def require_same_spec(folders: Mapping[str, Path]) -> None:
    """Check that the version folders of a model's steps hold one spec.

    Args:
        folders: Version folder of each step, by the step's name; those that do not exist are passed over.

    Raises:
        RepositoryError: Two of them differ.
    """
    digests = {
        step: Manifest.read(folder).files[SPEC_FILE].sha256
        for step, folder in folders.items()
        if (folder / FILE_NAME).is_file()
    }
    first = next(iter(digests), None)
    for step, digest in digests.items():
        if first is not None and digest != digests[first]:
            raise RepositoryError(
                f"{folders[step] / SPEC_FILE} is not the same as the spec of {first}: the folders come from "
                f"different imports. Import the model again."
            )


def tool_versions(*packages: str) -> dict[str, str]:
    """Return versions of installed packages, mlcls among them; those that are not installed are left out."""
    from importlib.metadata import PackageNotFoundError, version

    versions = {}
    for package in ("mlcls", *packages):
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
