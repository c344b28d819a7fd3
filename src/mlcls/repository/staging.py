"""Versions that are not in the repository yet: what each is made of, and how its folders are written."""

from __future__ import annotations

import abc
import dataclasses
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from mlcls.base.files import write_text
from mlcls.model.spec import SPEC_FILE, ModelSpec
from mlcls.repository.manifest import EngineRecord, write_manifest
from mlcls.repository.models import ModelVersion
from mlcls.repository.names import ENGINE_SUFFIX, POSTPROCESS_SUFFIX, STEP_SUFFIXES, VERSION_FILE, step_name

# Folder of a staged version that becomes the ensemble's version folder.
ENSEMBLE_FOLDER: Final = "ensemble"


class StagedVersion(abc.ABC):
    """A version on its way into a repository.

    Attributes:
        spec: Its spec.
        calibration: What the manifest of postprocess says of the thresholds, if they were calibrated.
    """

    spec: ModelSpec
    calibration: Mapping[str, Any] | None

    @abc.abstractmethod
    def put_engines(self, folder: Path) -> Sequence[EngineRecord]:
        """Put the model files into the engine's version folder and return their records."""

    def write(self, staging: Path, number: int, replaces: int | None) -> None:
        """Write the version folders into a staging folder: one by the suffix of each step, and `ENSEMBLE_FOLDER`.

        Args:
            staging: The folder.
            number: The version's number.
            replaces: The version that is active now; None if there is none.

        Raises:
            RepositoryError: The version that this one comes from is damaged.
        """
        for suffix in STEP_SUFFIXES:
            write_text(staging / suffix / SPEC_FILE, self.spec.to_json())
        engines = self.put_engines(staging / ENGINE_SUFFIX)
        for suffix in STEP_SUFFIXES:
            write_manifest(
                staging / suffix,
                step_name(self.spec.name, suffix, number),
                engines if suffix == ENGINE_SUFFIX else (),
                self.calibration if suffix == POSTPROCESS_SUFFIX else None,
            )
        write_text(staging / ENSEMBLE_FOLDER / VERSION_FILE, json.dumps({"replaces": replaces}) + "\n")


@dataclasses.dataclass(frozen=True)
class ConvertedVersion(StagedVersion):
    """A converted model.

    Attributes:
        spec: The spec, with the digest of the ONNX file.
        onnx_model: The ONNX file; it is moved.
        record: Where the ONNX file came from.
    """

    spec: ModelSpec
    onnx_model: Path
    record: EngineRecord
    calibration: None = None

    def put_engines(self, folder: Path) -> Sequence[EngineRecord]:
        """Move the ONNX file."""
        shutil.move(self.onnx_model, folder / self.record.file)
        return [self.record]


class RecalibratedVersion(StagedVersion):
    """A version that differs from another one by its thresholds; it has all engines of that version, as hard links."""

    def __init__(self, base: ModelVersion, thresholds: Sequence[float], calibration: Mapping[str, Any]) -> None:
        """Read the spec of the other version.

        Args:
            base: The version to take everything else from.
            thresholds: One for each label.
            calibration: What the manifest of postprocess says of them.

        Raises:
            RepositoryError: The other version is damaged.
            SpecError: The thresholds are not one number for each label.
        """
        self._base = base
        self.spec = dataclasses.replace(base.spec, thresholds=tuple(thresholds))
        self.calibration = calibration

    def put_engines(self, folder: Path) -> Sequence[EngineRecord]:
        """Link the model files, whose content is checked: the new manifest vouches for it."""
        manifest = self._base.verify(ENGINE_SUFFIX)
        for file in manifest.files:
            if file != SPEC_FILE:
                os.link(self._base.engine_folder / file, folder / file)
        return manifest.engines
