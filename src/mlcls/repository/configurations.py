"""The generated files of a repository: render them, write those that differ, and find those that are stale."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from mlcls.base.files import STAGING_PREFIX, write_bytes
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
    STEP_NAME,
    VERSION_NUMBER,
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


def write_configs(
    repository: Repository,
    spec: ModelSpec,
    settings: ModelSettings | None = None,
    others: Mapping[str, str | bytes | None] | None = None,
) -> list[Path]:
    """Write the generated files of a model with all its versions, if they differ, and return those that changed.

    `spec` is that of the active version; the settings are by default those in `serving.json`. `others` are further
    files to write first, or to remove if None, by their paths in the repository. Files that only earlier settings
    needed are removed. If this fails, every file stays as it was.

    Raises:
        ConfigError: The model's `serving.json` is wrong.
    """
    settings = repository.settings(spec.name) if settings is None else settings
    numbers = {repository.active_number(spec.name), *repository.numbers(spec.name)}
    steps = [step_name(spec.name, PREPROCESS_SUFFIX, number) for number in numbers]
    obsolete = {target_path(step, target): None for step in steps for target in TARGETS}
    others, files = others or {}, expected_files(repository, spec, settings)
    changed = write_files(repository.root, {**others, **obsolete, **files})
    return [path for path in changed if path.relative_to(repository.root).as_posix() not in others]


def write_files(root: Path, files: Mapping[str, str | bytes | None]) -> list[Path]:
    """Write each file, by path in the repository, that differs from its content; None removes it.

    If this fails, every file stays as it was. Return the files that changed.
    """
    contents = {root / path: text.encode() if isinstance(text, str) else text for path, text in files.items()}
    before = {path: read_file(path) for path in contents}
    changed = [path for path in contents if contents[path] != before[path]]
    try:
        for path in changed:
            _put(path, contents[path])
    except BaseException:
        for path in changed:
            if read_file(path) != before[path]:
                _put(path, before[path])
        raise
    return changed


def read_file(path: Path) -> bytes | None:
    """Return the content of a file; None if there is none."""
    return path.read_bytes() if path.is_file() else None


def _put(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink(missing_ok=True)
    else:
        write_bytes(path, content)


def find_stale(repository: Repository, specs: Iterable[ModelSpec]) -> dict[str, str]:
    """Return what is wrong with generated files, by path: missing, different, unexpected, or of no model."""
    root = repository.root
    files: dict[str, str] = {}
    for spec in specs:
        files |= expected_files(repository, spec, repository.settings(spec.name))
    stale = _compare(root, files)
    owners = {path.split("/")[0] for path in files}
    others = [folder for folder in repository.folders() if folder.name not in owners] if root.is_dir() else []
    for path in [*root.glob("*.pbtxt"), *(path for folder in others for path in sorted(folder.rglob("*.pbtxt")))]:
        stale[path.relative_to(root).as_posix()] = "belongs to no model of the repository"
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
    """Compare files with their texts, and find what should not be beside them.

    Those are configurations, and in the folder of a step any file: Triton runs a `model.py` or a library that it finds
    there. The version folders have manifests.
    """
    stale = {
        path: "differs from what the generator writes" if (root / path).is_file() else "missing"
        for path, text in files.items()
        if read_file(root / path) != text.encode()
    }
    for folder in sorted({path.split("/")[0] for path in files}):
        is_step = STEP_NAME.fullmatch(folder) is not None
        for path in sorted((root / folder).rglob("*" if is_step else "*.pbtxt")):
            name = path.relative_to(root).as_posix()
            is_in_version = is_step and VERSION_NUMBER.fullmatch(name.split("/")[1])
            is_unfinished = path.name.startswith(STAGING_PREFIX)
            if name not in files and path.is_file() and not is_in_version and not is_unfinished:
                stale[name] = "is not a file that the generator writes"
    return stale
