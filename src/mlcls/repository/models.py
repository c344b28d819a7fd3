"""The Triton model repository as two objects: `Repository`, and `ModelVersion` for one version of a served model.

    NAME/                config.pbtxt  labels.txt  1/version.json  2/{version.json,labels.txt}
    NAME_preprocess/     config.pbtxt              1/{manifest,model_spec}.json
    NAME_engine/         config.pbtxt  configs/    1/{manifest,model_spec}.json  1/model.onnx
    NAME_postprocess/    config.pbtxt  labels.txt  1/{manifest,model_spec}.json
    NAME_preprocess_2/   config.pbtxt              2/...       (and NAME_engine_2/, NAME_postprocess_2/)

The configurations are committed; `mlcls` fills in the version folders. Version 1 is the model that was imported. Each
later version has its own steps, which can be loaded while the others serve. Each step has a copy of the spec in its
version folder, since Triton shows a backend only its own folder, and copies each model separately if the repository is
in an object store.

A version exists if `NAME/N/` does, which is written after its steps and removed before them. `NAME/config.pbtxt` names
the active version and its steps; replacing that one file is the switch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from mlcls.base.documents import Document, read
from mlcls.base.files import (
    STAGING_PREFIX,
    describe_os_error,
    folder_lock,
    held_folder,
    replace_folder,
    require_writable,
)
from mlcls.errors import ConfigError, RepositoryError
from mlcls.model.catalog import OFFICIAL_MODELS
from mlcls.model.spec import SPEC_FILE, ModelSpec
from mlcls.repository import triton_config
from mlcls.repository.manifest import EngineRecord, Manifest, require_same_spec, verify_folder, write_manifest
from mlcls.repository.names import (
    CONFIG_FILE,
    ENGINE_SUFFIX,
    FIRST_VERSION,
    LAST_NUMBER_FILE,
    STEP_NAME,
    STEP_SUFFIXES,
    VERSION_FILE,
    VERSION_NUMBER,
    step_name,
)
from mlcls.repository.settings import DEFAULT_MODEL_SETTINGS, SETTINGS_REMEDY, ModelSettings, Target, settings_path

# What to do if the model file of a target is missing; for the other targets, import the model again.
_REMEDIES: Final[Mapping[Target, str]] = {
    "gpu": "Build it in the serving image: mlcls build-engine {name} --engine tensorrt.",
    "int8": "Build it from your photos: mlcls build-engine {name} --engine int8 --photos FOLDER.",
}


@dataclasses.dataclass(frozen=True)
class Repository:
    """A folder of Triton models."""

    root: Path

    def __str__(self) -> str:
        return str(self.root)

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Lock the repository against changes by other processes; wait for one that is changing it."""
        return folder_lock(self.root)

    def require_writable(self, name: str | None = None) -> None:
        """Check that the repository, and the folders of a model, can be changed: before the work, not after it.

        Raises:
            RepositoryError: A folder cannot be written; the text names it.
        """
        folders = [self.root]
        if self.root.is_dir():
            steps = {path: STEP_NAME.fullmatch(path.name) for path in self.folders()}
            folders += [path for path, step in steps.items() if name in (path.name, step and step["model"])]
        for folder in folders:
            try:
                require_writable(folder)
            except OSError as error:
                text = "The model repository cannot be changed, and nothing was done yet"
                raise RepositoryError(f"{text}: {describe_os_error(error)}") from None

    def folders(self) -> list[Path]:
        """Return the folders of Triton's models, sorted; hidden folders are the workplaces of commands.

        Raises:
            RepositoryError: There is no such folder.
        """
        if not self.root.is_dir():
            raise RepositoryError(f"Expected a model repository, got {self}, which is not a folder; see --repository.")
        return sorted(path for path in self.root.iterdir() if not path.name.startswith(".") and path.is_dir())

    def models(self) -> list[str]:
        """Return the names of the ensembles, imported or not.

        Raises:
            RepositoryError: There is no such folder.
        """

        def has_engine(name: str) -> bool:
            numbers = {FIRST_VERSION, *self.numbers(name)}
            return any((self.root / step_name(name, ENGINE_SUFFIX, number)).is_dir() for number in numbers)

        names = [folder.name for folder in self.folders() if (folder / CONFIG_FILE).is_file()]
        return [name for name in names if not STEP_NAME.fullmatch(name) and has_engine(name)]

    def numbers(self, name: str) -> list[int]:
        """Return the numbers of a model's complete versions, ascending; none if it is not imported."""
        folders = [path for path in (self.root / name).glob("[1-9]*") if path.is_dir()]
        return sorted(int(path.name) for path in folders if VERSION_NUMBER.fullmatch(path.name))

    def is_imported(self, name: str) -> bool:
        """Return whether the version folders of a model are filled in."""
        return bool(self.numbers(name))

    def versions(self, name: str) -> list[ModelVersion]:
        """Return a model's complete versions, ascending."""
        return [ModelVersion(self, name, number) for number in self.numbers(name)]

    def version(self, name: str, number: int) -> ModelVersion:
        """Return one version.

        Raises:
            RepositoryError: It does not exist.
        """
        if number not in self.numbers(name):
            known = format_numbers(self.numbers(name))
            raise RepositoryError(f"{name} in {self} has no version {number}; expected one of {known}.")
        return ModelVersion(self, name, number)

    def active_number(self, name: str) -> int:
        """Return the number of the version that the ensemble serves; the first one if the model is not imported.

        Raises:
            RepositoryError: There are several versions, and the ensemble's configuration does not say which.
        """
        numbers = self.numbers(name)
        if not numbers:
            return FIRST_VERSION
        try:
            return read_pin(self.root / name / CONFIG_FILE)
        except RepositoryError as error:
            if len(numbers) == 1:
                return numbers[0]
            raise RepositoryError(
                f"{error} {name} has the versions {format_numbers(numbers)}; choose one: mlcls rollback {name} --to N."
            ) from None

    def active(self, name: str) -> ModelVersion:
        """Return the version that the ensemble serves.

        Raises:
            RepositoryError: The model is unknown or not imported, or the active version does not exist.
        """
        if name not in (models := self.models()):
            known = f"expected one of {', '.join(models)}" if models else "the repository is empty"
            raise RepositoryError(f"{self} has no model {name!r}; {known}. Import it: mlcls import {name}.")
        if not (numbers := self.numbers(name)):
            source = name if name in OFFICIAL_MODELS else f"FOLDER --name {name}"
            text = f"has no weights yet: {name}/{FIRST_VERSION} does not exist. Import it: mlcls import {source}."
            raise RepositoryError(f"The model {name} in {self} {text}")
        number = self.active_number(name)
        if number not in numbers:
            raise RepositoryError(
                f"Version {number}, which {name} in {self} serves, does not exist; choose one of "
                f"{format_numbers(numbers)}: mlcls rollback {name} --to N."
            )
        return ModelVersion(self, name, number)

    def settings(self, name: str) -> ModelSettings:
        """Return a model's settings; the defaults if it has no `serving.json`.

        Raises:
            ConfigError: The file cannot be read, or is wrong.
        """
        path = settings_path(self.root, name)
        return read(path, ModelSettings, ConfigError, SETTINGS_REMEDY) if path.exists() else DEFAULT_MODEL_SETTINGS

    def leftovers(self, name: str) -> dict[int, list[Path]]:
        """Return the step folders whose version does not exist, by its number: an interrupted command left them.

        Those of version 1 do not count if the model is not imported yet: they hold its configurations.
        """
        complete = self.numbers(name)
        found: dict[int, list[Path]] = {}
        for path in self.folders():
            match = STEP_NAME.fullmatch(path.name)
            if match and match["model"] == name:
                number = int(match["version"] or FIRST_VERSION)
                if number not in complete and (number != FIRST_VERSION or complete):
                    found.setdefault(number, []).append(path)
        return found

    def unfinished_files(self) -> list[Path]:
        """Return the files that a command is writing; if nobody holds the lock, a killed one left them."""
        return [path for folder in self.folders() for path in sorted(folder.rglob(f"{STAGING_PREFIX}*"))]

    def next_number(self, name: str, taken: Iterable[int] = ()) -> int:
        """Return a number that no version has or had, since a server, its log and its metrics may still use old ones.

        A running server may still have further versions: `taken`.

        Raises:
            RepositoryError: The file with the last number is damaged.
        """
        path = self.root / name / LAST_NUMBER_FILE
        last = path.read_text(encoding="utf-8", errors="replace").strip() if path.exists() else "0"
        if not re.fullmatch(rf"0|{VERSION_NUMBER.pattern}", last):
            raise RepositoryError(f"{path}: expected the number of the last version, got {last[:20]!r}; remove it.")
        return max([int(last), *self.numbers(name), *self.leftovers(name), *taken]) + 1


class VersionRecord(Document, frozen=True):
    """The content of `version.json`: the number of the version that was active when this one was made."""

    replaces: int | None


@dataclasses.dataclass(frozen=True)
class ModelVersion:
    """One version of a model in a repository; the model's name is that of its ensemble."""

    repository: Repository
    name: str
    number: int

    @property
    def folder(self) -> Path:
        """The ensemble's version folder; it exists if the version does."""
        return self.repository.root / self.name / str(self.number)

    @property
    def engine_folder(self) -> Path:
        """The engine's version folder, with its model files and manifest."""
        return self.folders[ENGINE_SUFFIX]

    @property
    def folders(self) -> dict[str, Path]:
        """The version folder of each step, by the suffix of the step's name."""
        return {suffix: self.repository.root / self.step(suffix) / str(self.number) for suffix in STEP_SUFFIXES}

    def step(self, suffix: str) -> str:
        """Return the name of the Triton model that is a step of this version."""
        return step_name(self.name, suffix, self.number)

    @property
    def steps(self) -> list[str]:
        """The names of all steps, in the order of the suffixes."""
        return [self.step(suffix) for suffix in STEP_SUFFIXES]

    @functools.cached_property
    def spec(self) -> ModelSpec:
        """The spec, read once, and checked to be the same in all steps.

        Raises:
            RepositoryError: The version is incomplete, its steps hold different specs, or a folder is not what its
                manifest says.
            SpecError: A spec cannot be read.
        """
        for suffix in STEP_SUFFIXES:
            self.verify(suffix, SPEC_FILE)
        require_same_spec({self.step(suffix): folder for suffix, folder in self.folders.items()})
        return ModelSpec.read(self.engine_folder / SPEC_FILE)

    def check(self) -> None:
        """Check that the steps belong together; raise the errors of `spec`."""
        _ = self.spec

    def verify(self, suffix: str, *files: str) -> Manifest:
        """Check that a step's folder is what its manifest says, and return the manifest; see `verify_folder`.

        The content of the named files is checked, of all if none is named.
        """
        return verify_folder(self.folders[suffix], self.step(suffix), files or None)

    @property
    def replaced(self) -> int | None:
        """The number of the version that was active when this one was made; None for the first.

        Raises:
            RepositoryError: The record is damaged.
        """
        path = self.folder / VERSION_FILE
        return read(path, VersionRecord, RepositoryError, "remove it").replaces if path.exists() else None

    def weights(self, target: Target) -> Path:
        """Return the engine's model file for a target.

        Raises:
            RepositoryError: It is missing.
        """
        path = self.engine_folder / triton_config.ENGINE_TARGETS[target].model_file
        if not path.is_file():
            raise RepositoryError(
                f"The target {target!r} needs {path}, which does not exist. "
                + _REMEDIES.get(target, "Import the model again: mlcls import.").format(name=self.name)
            )
        return path

    def add_engine(self, staged: Path, record: EngineRecord) -> None:
        """Move a model file into the engine's folder as `record.file`, in place of an older one of the same name.

        Raises:
            RepositoryError: The folder has no manifest, or is not what its manifest says.
        """
        root, folder = self.repository.root, self.engine_folder
        # Replace the whole folder, with hard links to the other files, so that files and manifest always agree.
        with self.repository.lock(), held_folder(root) as temporary:
            old = verify_folder(folder, self.step(ENGINE_SUFFIX), files=())
            staging = temporary / folder.name
            staging.mkdir(mode=0o755)
            for name in old.files:
                if name != record.file:
                    os.link(folder / name, staging / name)
            shutil.move(staged, staging / record.file)
            (staging / record.file).chmod(0o644)
            others = [engine for engine in old.engines if engine.file != record.file]
            write_manifest(staging, old.step, [*others, record], old.calibration)
            replace_folder(staging, folder)


def read_pin(path: Path) -> int:
    """Return the version that an ensemble's configuration serves.

    Raises:
        RepositoryError: The file is missing, or its steps are not those of one version.
    """
    from google.protobuf.text_format import ParseError

    try:
        config = triton_config.parse_config(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ParseError) as error:
        raise RepositoryError(f"{path}: expected the configuration of an ensemble, got: {error}.") from None
    steps = [(step.model_name, step.model_version) for step in config.ensemble_scheduling.step]
    served = [*config.version_policy.specific.versions]
    expected = [(step_name(config.name, suffix, number), number) for number in served for suffix in STEP_SUFFIXES]
    if len(served) != 1 or steps != expected:
        raise RepositoryError(f"{path}: expected an ensemble of the three steps of one version, got {steps}.")
    return int(served[0])


def format_numbers(numbers: list[int]) -> str:
    """Return version numbers as text for a message."""
    return ", ".join(map(str, numbers)) or "none"
