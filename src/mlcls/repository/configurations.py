"""The generated files of a repository: what they should be, written if they differ, and found if they are stale."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path

from mlcls.base.files import STAGING_PREFIX, write_text
from mlcls.errors import RepositoryError
from mlcls.model.catalog import OFFICIAL_MODELS, official_spec
from mlcls.model.spec import ModelSpec
from mlcls.repository import triton_config
from mlcls.repository.models import ModelVersion, Repository
from mlcls.repository.names import (
    CONFIG_FILE,
    FIRST_VERSION,
    LABELS_FILE,
    POSTPROCESS_SUFFIX,
    ensemble_labels_file,
    step_name,
)
from mlcls.repository.settings import DEFAULT_MODEL_SETTINGS, ModelSettings


@dataclasses.dataclass(frozen=True)
class StaleFile:
    """A generated file that is not what the generator writes today.

    Attributes:
        path: The file, relative to the repository.
        reason: `missing`, `differs`, or what else is wrong.
    """

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def render_files(
    spec: ModelSpec, version: int = FIRST_VERSION, settings: ModelSettings = DEFAULT_MODEL_SETTINGS
) -> dict[str, str]:
    """Return the text of every generated file of a model that serves one version, by its path in the repository."""
    ensemble = triton_config.format_config(triton_config.build_ensemble(spec, version, settings))
    return {f"{spec.name}/{CONFIG_FILE}": ensemble, **render_version(spec, version, settings)}


def render_version(spec: ModelSpec, version: int, settings: ModelSettings = DEFAULT_MODEL_SETTINGS) -> dict[str, str]:
    """Return the text of the files that belong to one version, active or not: all but the ensemble's configuration."""
    steps = triton_config.build_steps(spec, version, settings)
    files = {path: triton_config.format_config(config) for path, config in steps.items()}
    labels = "".join(f"{label}\n" for label in spec.labels)
    files[f"{spec.name}/{ensemble_labels_file(version)}"] = labels
    files[f"{step_name(spec.name, POSTPROCESS_SUFFIX, version)}/{LABELS_FILE}"] = labels
    return files


def expected_specs(repository: Repository) -> list[ModelSpec]:
    """Return the specs that the repository's configurations come from.

    An imported model has its own; an official one that is not imported has the catalog's.

    Raises:
        RepositoryError: A custom model is not imported, so that nothing says what its configurations should be.
    """
    specs = []
    present = repository.models() if repository.root.is_dir() else []
    for name in sorted({*present, *OFFICIAL_MODELS}):
        if repository.is_imported(name):
            specs.append(repository.active(name).spec)
        elif name in OFFICIAL_MODELS:
            specs.append(official_spec(name))
        else:
            raise RepositoryError(
                f"The custom model {name} in {repository} is not imported here, so its configurations cannot be "
                f"checked; import it (mlcls import FOLDER --name {name}) or remove its folders."
            )
    return specs


def expected_files(repository: Repository, spec: ModelSpec, settings: ModelSettings) -> dict[str, str]:
    """Return the text of every generated file of a model with all its versions, by its path in the repository.

    Args:
        repository: The model repository.
        spec: The spec of the active version.
        settings: The model's settings.
    """
    active = repository.active_number(spec.name)
    files = render_files(spec, active, settings)
    for version in repository.versions(spec.name):
        if version.number != active:
            files |= render_version(version.spec, version.number, settings)
    return files


def write_configs(repository: Repository, spec: ModelSpec) -> list[Path]:
    """Write the generated files of a model, those that differ; those of its other versions too.

    Files that only former settings needed are removed.

    Args:
        repository: The model repository.
        spec: The spec of the active version.

    Returns:
        The files that changed.

    Raises:
        ConfigError: The model's `serving.json` is wrong.
    """
    files = expected_files(repository, spec, repository.settings(spec.name))
    changed = write_files(repository.root, files)
    obsolete = [repository.root / path for path in sorted(possible_paths(repository, spec.name) - files.keys())]
    obsolete = [path for path in obsolete if path.is_file()]
    for path in obsolete:
        path.unlink()
    return changed + obsolete


def possible_paths(repository: Repository, name: str) -> set[str]:
    """Return the configurations that a model has with some settings and has not with others."""
    numbers = {repository.active_number(name), *repository.numbers(name)}
    return {path for number in numbers for path in triton_config.preprocess_paths(name, number)}


def write_files(root: Path, files: Mapping[str, str]) -> list[Path]:
    """Write files that differ from their texts, which come by path in the repository; return those that changed."""
    changed = []
    for relative, text in files.items():
        path = root / relative
        if not path.is_file() or path.read_bytes() != text.encode():
            write_text(path, text)
            changed.append(path)
    return changed


def find_stale(repository: Repository, specs: Iterable[ModelSpec]) -> list[StaleFile]:
    """Return the generated files that are missing, differ from what the generator writes, or belong to nothing."""
    root = repository.root
    stale = []
    expected: set[str] = set()
    owners: set[str] = set()
    for spec in specs:
        files = expected_files(repository, spec, repository.settings(spec.name))
        expected.update(files)
        owners.update(path.split("/")[0] for path in files)
        stale += _compare(root, files)
    if root.is_dir():
        for path in sorted(root.rglob("*.pbtxt")):
            relative = path.relative_to(root).as_posix()
            if relative not in expected and relative.split("/")[0] in owners:
                stale.append(StaleFile(relative, "is not a file that the generator writes"))
            elif relative.split("/")[0] not in owners and not relative.startswith(STAGING_PREFIX):
                stale.append(StaleFile(relative, "belongs to no model of the repository"))
    return stale


def require_fresh(version: ModelVersion) -> None:
    """Refuse to serve a version whose configurations do not fit its spec; the model's other versions do not matter.

    Raises:
        RepositoryError: A configuration is stale.
        ConfigError: The model's `serving.json` is wrong.
    """
    root = version.repository.root
    files = render_files(version.spec, version.number, version.repository.settings(version.name))
    stale = _compare(root, files)
    for folder in sorted({path.split("/")[0] for path in files}):
        for path in sorted((root / folder).rglob("*.pbtxt")):
            if (relative := path.relative_to(root).as_posix()) not in files:
                stale.append(StaleFile(relative, "is not a file that the generator writes"))
    if stale:
        raise RepositoryError(f"{root} is stale: {'; '.join(map(str, stale))}. Run: mlcls repository.")


def _compare(root: Path, files: Mapping[str, str]) -> list[StaleFile]:
    stale = []
    for relative, text in files.items():
        try:
            found = (root / relative).read_bytes()
        except FileNotFoundError:
            stale.append(StaleFile(relative, "missing"))
            continue
        if found != text.encode():
            stale.append(StaleFile(relative, "differs from what the generator writes"))
    return stale
