"""The generated files of a repository: render them, write those that differ, and find those that are stale."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from mlcls.base.files import STAGING_PREFIX, write_text
from mlcls.errors import RepositoryError
from mlcls.model.catalog import OFFICIAL_MODELS, official_spec
from mlcls.model.spec import ModelSpec
from mlcls.repository.models import ModelVersion, Repository
from mlcls.repository.names import (
    CONFIG_FILE,
    FIRST_VERSION,
    LABELS_FILE,
    POSTPROCESS_SUFFIX,
    PREPROCESS_SUFFIX,
    ensemble_labels_file,
    step_name,
)
from mlcls.repository.settings import DEFAULT_MODEL_SETTINGS, TARGETS, ModelSettings
from mlcls.repository.triton_config import ConfigBuilder, format_config, target_path


def render_files(
    spec: ModelSpec, version: int = FIRST_VERSION, settings: ModelSettings = DEFAULT_MODEL_SETTINGS
) -> dict[str, str]:
    """Return the text of each generated file of a model with one version, by its path in the repository."""
    ensemble = format_config(ConfigBuilder(spec, version, settings).ensemble())
    return {f"{spec.name}/{CONFIG_FILE}": ensemble, **render_version(spec, version, settings)}


def render_version(spec: ModelSpec, version: int, settings: ModelSettings) -> dict[str, str]:
    """Return the text of each file of one version, active or not: all but the ensemble's configuration."""
    steps = ConfigBuilder(spec, version, settings).steps()
    labels = "".join(f"{label}\n" for label in spec.labels)
    return {
        **{path: format_config(config) for path, config in steps.items()},
        f"{spec.name}/{ensemble_labels_file(version)}": labels,
        f"{step_name(spec.name, POSTPROCESS_SUFFIX, version)}/{LABELS_FILE}": labels,
    }


def expected_specs(repository: Repository) -> list[ModelSpec]:
    """Return the specs that the repository's configurations are generated from.

    An imported model has its own spec; an official one that is not imported has the catalog's.

    Raises:
        RepositoryError: A custom model is not imported, so nothing says what its configurations should be.
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
    """Return the text of each generated file of a model with all its versions, by its path in the repository.

    `spec` is that of the active version.
    """
    active = repository.active_number(spec.name)
    files = render_files(spec, active, settings)
    for version in repository.versions(spec.name):
        if version.number != active:
            files |= render_version(version.spec, version.number, settings)
    return files


def write_configs(repository: Repository, spec: ModelSpec) -> list[Path]:
    """Write the generated files of a model with all its versions, if they differ, and return those that changed.

    `spec` is that of the active version. Files that only earlier settings needed are removed.

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
    """Return the configurations that a model has with some settings only, by their paths in the repository."""
    numbers = {repository.active_number(name), *repository.numbers(name)}
    steps = [step_name(name, PREPROCESS_SUFFIX, number) for number in numbers]
    return {target_path(step, target) for step in steps for target in TARGETS}


def write_files(root: Path, files: Mapping[str, str]) -> list[Path]:
    """Write each file that differs from its text, given by path in the repository; return those that changed."""
    changed = {root / path: text for path, text in files.items() if not has_text(root / path, text)}
    for path, text in changed.items():
        write_text(path, text)
    return [*changed]


def has_text(path: Path, text: str) -> bool:
    """Return whether a file exists and has exactly this text."""
    return path.is_file() and path.read_bytes() == text.encode()


def find_stale(repository: Repository, specs: Iterable[ModelSpec]) -> dict[str, str]:
    """Find generated files that are missing, differ from what the generator writes, or belong to no model.

    Returns:
        What is wrong with each, by its path in the repository.
    """
    root = repository.root
    files: dict[str, str] = {}
    for spec in specs:
        files |= expected_files(repository, spec, repository.settings(spec.name))
    stale = _compare(root, files)
    owners = {path.split("/")[0] for path in files}
    for path in sorted(root.rglob("*.pbtxt")):
        relative = path.relative_to(root).as_posix()
        if relative.split("/")[0] not in owners and not relative.startswith(STAGING_PREFIX):
            stale[relative] = "belongs to no model of the repository"
    return stale


def require_fresh(version: ModelVersion) -> None:
    """Check that a version's configurations are what the generator writes; other versions do not matter.

    Raises:
        RepositoryError: A configuration is stale.
        ConfigError: The model's `serving.json` is wrong.
    """
    repository = version.repository
    stale = _compare(repository.root, render_files(version.spec, version.number, repository.settings(version.name)))
    if stale:
        faults = "; ".join(f"{path}: {reason}" for path, reason in stale.items())
        raise RepositoryError(f"{repository} is stale: {faults}. Run: mlcls repository.")


def _compare(root: Path, files: Mapping[str, str]) -> dict[str, str]:
    """Compare files with their texts, and find configurations beside them that should not be there."""
    stale = {
        path: "differs from what the generator writes" if (root / path).is_file() else "missing"
        for path, text in files.items()
        if not has_text(root / path, text)
    }
    for folder in sorted({path.split("/")[0] for path in files}):
        found = [path.relative_to(root).as_posix() for path in sorted((root / folder).rglob("*.pbtxt"))]
        stale |= {path: "is not a file that the generator writes" for path in found if path not in files}
    return stale
