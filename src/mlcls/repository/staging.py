"""Versions that are not in the repository yet: what they consist of, and how their folders are written."""

from __future__ import annotations

import abc
import dataclasses
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlcls.base.documents import change
from mlcls.base.files import write_text
from mlcls.errors import SpecError
from mlcls.model.spec import SPEC_FILE, ModelSpec
from mlcls.repository.manifest import EngineRecord, write_manifest
from mlcls.repository.models import ModelVersion
from mlcls.repository.names import ENGINE_SUFFIX, POSTPROCESS_SUFFIX, VERSION_FILE


class StagedVersion(abc.ABC):
    """A version on its way into a repository, with the record of its thresholds if they were calibrated."""

    spec: ModelSpec
    calibration: Mapping[str, Any] | None = None

    @abc.abstractmethod
    def put_engines(self, folder: Path) -> Sequence[EngineRecord]:
        """Put the model files into the engine's version folder and return their records."""

    def write(self, target: ModelVersion, replaces: int | None) -> None:
        """Write the folders of a version in a staging repository; `replaces` is the active version's number, if any.

        Raises:
            RepositoryError: The version that this one is derived from is damaged.
        """
        for folder in target.folders.values():
            write_text(folder / SPEC_FILE, self.spec.to_json())
        engines = self.put_engines(target.engine_folder)
        for suffix, folder in target.folders.items():
            calibration = self.calibration if suffix == POSTPROCESS_SUFFIX else None
            write_manifest(folder, target.step(suffix), engines if suffix == ENGINE_SUFFIX else (), calibration)
        write_text(target.folder / VERSION_FILE, json.dumps({"replaces": replaces}) + "\n")


@dataclasses.dataclass(frozen=True)
class ConvertedVersion(StagedVersion):
    """A converted model: its spec with the digest of the ONNX file; that file, which is moved; and its record."""

    spec: ModelSpec
    onnx_model: Path
    record: EngineRecord

    def put_engines(self, folder: Path) -> Sequence[EngineRecord]:
        """Move the ONNX file."""
        shutil.move(self.onnx_model, folder / self.record.file)
        return [self.record]


class RecalibratedVersion(StagedVersion):
    """A version that differs from another one in its thresholds only; its engines are hard links to the other's."""

    def __init__(self, base: ModelVersion, thresholds: Sequence[float], calibration: Mapping[str, Any]) -> None:
        """Read the spec of the other version, `base`; the calibration is the thresholds' record for the manifest.

        Raises:
            RepositoryError: The other version is damaged.
            SpecError: The thresholds are not one finite number for each label.
        """
        self._base = base
        self.spec = change(base.spec, SpecError, thresholds=thresholds)
        self.calibration = calibration

    def put_engines(self, folder: Path) -> Sequence[EngineRecord]:
        """Link the model files, after checking their content, which the new manifest vouches for."""
        manifest = self._base.verify(ENGINE_SUFFIX)
        for file in manifest.files:
            if file != SPEC_FILE:
                os.link(self._base.engine_folder / file, folder / file)
        return manifest.engines
