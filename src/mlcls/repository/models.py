"""The Triton model repository: committed configurations, and version folders with weights that `mlcls` fills in.

    NAME/                config.pbtxt  labels.txt  1/      (and serving.json, where `mlcls tune` wrote it)
    NAME_preprocess/     config.pbtxt              1/{manifest,model_spec}.json
    NAME_engine/         config.pbtxt  configs/    1/{manifest,model_spec}.json  1/model.onnx
    NAME_postprocess/    config.pbtxt  labels.txt  1/{manifest,model_spec}.json

Later versions have steps of their own beside these, see `versions.py`. Each step has a copy of the spec in its version
folder, since Triton gives a backend its own folder only, and copies each model by itself where the repository is in an
object store.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from mlcls.base.files import STAGING_PREFIX, write_text
from mlcls.errors import RepositoryError
from mlcls.model.catalog import OFFICIAL_MODELS, official_spec
from mlcls.model.spec import FILE_NAME, ModelSpec
from mlcls.repository import triton_config
from mlcls.repository.manifest import verify_folder
from mlcls.repository.names import (
    ENGINE_SUFFIX,
    FIRST_VERSION,
    LABELS_FILE,
    POSTPROCESS_SUFFIX,
    STEP_SUFFIXES,
    ensemble_labels_file,
    step_name,
)
from mlcls.repository.settings import DEFAULT_MODEL_SETTINGS, ModelSettings, Target, read_settings
from mlcls.repository.versions import active_version, describe, engine_folder, is_step_name, list_versions, step_folders

# What to do where the model file of a target is missing; by default the model is imported again.
_REMEDIES: Final[Mapping[Target, str]] = {
    "gpu": "Build it in the serving image: mlcls build-engine {name} --engine tensorrt.",
    "int8": "Build it from your photos: mlcls build-engine {name} --engine int8 --photos FOLDER.",
}


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
    return {f"{spec.name}/config.pbtxt": ensemble, **render_version(spec, version, settings)}


def render_version(spec: ModelSpec, version: int, settings: ModelSettings = DEFAULT_MODEL_SETTINGS) -> dict[str, str]:
    """Return the text of the files that belong to one version, active or not: all but the ensemble's configuration."""
    steps = triton_config.build_steps(spec, version, settings)
    files = {path: triton_config.format_config(config) for path, config in steps.items()}
    labels = "".join(f"{label}\n" for label in spec.labels)
    files[f"{spec.name}/{ensemble_labels_file(version)}"] = labels
    files[f"{step_name(spec.name, POSTPROCESS_SUFFIX, version)}/{LABELS_FILE}"] = labels
    return files


def write_configs(root: Path, spec: ModelSpec) -> list[Path]:
    """Write the generated files of a model, those that differ; those of its other versions too.

    Those that only former settings needed are removed.

    Args:
        root: The model repository.
        spec: The spec of the active version.

    Returns:
        The files that changed.

    Raises:
        ConfigError: The model's `serving.json` is wrong.
    """
    files = expected_files(root, spec, read_settings(root, spec.name))
    changed = write_files(root, files)
    versions = {active_version(root, spec.name), *list_versions(root, spec.name)}
    possible = {path for version in versions for path in triton_config.preprocess_paths(spec.name, version)}
    obsolete = [root / path for path in sorted(possible - files.keys()) if (root / path).is_file()]
    for path in obsolete:
        path.unlink()
    return changed + obsolete


def expected_files(root: Path, spec: ModelSpec, settings: ModelSettings) -> dict[str, str]:
    """Return the text of every generated file of a model with all its versions, by its path in the repository."""
    active = active_version(root, spec.name)
    files = render_files(spec, active, settings)
    for version in list_versions(root, spec.name):
        if version != active:
            files |= render_version(read_version_spec(root, spec.name, version), version, settings)
    return files


def write_files(root: Path, files: Mapping[str, str]) -> list[Path]:
    """Write files that differ from their texts, which come by path in the repository; return those that changed."""
    changed = []
    for relative, text in files.items():
        path = root / relative
        if not path.is_file() or path.read_bytes() != text.encode():
            write_text(path, text)
            changed.append(path)
    return changed


def check_name(name: str) -> None:
    """Refuse a name that another model's step could have.

    Raises:
        RepositoryError: It ends as the steps' names do.
    """
    if is_step_name(name):
        raise RepositoryError(
            f"Expected a name that ends in none of {', '.join(STEP_SUFFIXES)}, with or without a number, got {name!r}."
        )


def list_models(root: Path) -> list[str]:
    """Return names of the ensembles of a repository, imported or not."""
    if not root.is_dir():
        raise RepositoryError(f"Expected a model repository, got {root}, which is no folder; see --repository.")
    return sorted(
        path.name
        for path in root.iterdir()
        if (path / "config.pbtxt").is_file() and not is_step_name(path.name) and _has_engine(root, path.name)
    )


def _has_engine(root: Path, name: str) -> bool:
    versions = {FIRST_VERSION, *list_versions(root, name)}
    return any((root / step_name(name, ENGINE_SUFFIX, version)).is_dir() for version in versions)


def is_imported(root: Path, name: str) -> bool:
    """Return whether the version folders of a model are filled in."""
    return bool(list_versions(root, name))


def read_spec(root: Path, name: str) -> ModelSpec:
    """Return the spec of an imported model's active version, after checking that its steps belong together.

    Raises:
        RepositoryError: The model is unknown, not imported, incomplete, its steps hold different specs, or a
            version folder is not what its manifest says.
        SpecError: A spec cannot be read.
    """
    models = list_models(root)
    if name not in models:
        raise RepositoryError(
            f"{root} has no model {name!r}; expected one of {', '.join(models) or 'none: the repository is empty'}. "
            f"Import it: mlcls import {name}."
        )
    version = active_version(root, name)
    if version not in (versions := list_versions(root, name)):
        if versions:
            raise RepositoryError(
                f"The version {version} that {name} in {root} serves does not exist; choose one of "
                f"{describe(versions)}: mlcls rollback {name} --to N."
            )
        raise RepositoryError(
            f"The model {name} in {root} has no weights yet: {name}/{FIRST_VERSION} does not exist. Import it: "
            f"mlcls import {name if name in OFFICIAL_MODELS else f'FOLDER --name {name}'}."
        )
    return read_version_spec(root, name, version)


def read_version_spec(root: Path, name: str, version: int) -> ModelSpec:
    """Return the spec of one version, active or not; see `read_spec`."""
    folders = step_folders(root, name, version)
    specs = {suffix: ModelSpec.read(folder / FILE_NAME) for suffix, folder in folders.items()}
    spec = specs[ENGINE_SUFFIX]
    for suffix, other in specs.items():
        if other != spec:
            raise RepositoryError(
                f"{folders[suffix] / FILE_NAME} is not the same as the spec of "
                f"{step_name(name, ENGINE_SUFFIX, version)}: the folders come from different imports. Import the model "
                f"again."
            )
    if spec.name != name:
        raise RepositoryError(f"The spec of {name} in {root} is that of {spec.name!r}. Import the model again.")
    for suffix, folder in folders.items():
        verify_folder(folder, step_name(name, suffix, version), [FILE_NAME])
    return spec


def find_weights(root: Path, name: str, target: Target) -> Path:
    """Return the engine's model file of the active version for a target.

    Raises:
        RepositoryError: It is missing.
    """
    path = engine_folder(root, name) / triton_config.ENGINE_TARGETS[target].model_file
    if not path.is_file():
        raise RepositoryError(
            f"{path} does not exist, which the target {target!r} needs. "
            + _REMEDIES.get(target, "Import the model again: mlcls import.").format(name=name)
        )
    return path


def expected_specs(root: Path) -> list[ModelSpec]:
    """Return the specs that the repository's configurations come from.

    An imported model has its own; an official one that is not imported has the catalog's.

    Raises:
        RepositoryError: A custom model is not imported, so that nothing says what its configurations should be.
    """
    specs = []
    present = list_models(root) if root.is_dir() else []
    for name in sorted({*present, *OFFICIAL_MODELS}):
        if is_imported(root, name):
            specs.append(read_spec(root, name))
        elif name in OFFICIAL_MODELS:
            specs.append(official_spec(name))
        else:
            raise RepositoryError(
                f"The custom model {name} in {root} is not imported here, so its configurations cannot be checked; "
                f"import it (mlcls import FOLDER --name {name}) or remove its folders."
            )
    return specs


def find_stale(root: Path, specs: Iterable[ModelSpec]) -> list[StaleFile]:
    """Return the generated files that are missing, differ from what the generator writes, or belong to nothing."""
    stale = []
    expected: set[str] = set()
    owners: set[str] = set()
    for spec in specs:
        files = expected_files(root, spec, read_settings(root, spec.name))
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


def require_fresh(root: Path, spec: ModelSpec) -> None:
    """Refuse to serve a model whose configurations do not fit its spec; its other versions do not matter.

    Raises:
        RepositoryError: A configuration is stale.
        ConfigError: The model's `serving.json` is wrong.
    """
    files = render_files(spec, active_version(root, spec.name), read_settings(root, spec.name))
    stale = _compare(root, files)
    for folder in sorted({path.split("/")[0] for path in files}):
        for path in sorted((root / folder).rglob("*.pbtxt")):
            if (relative := path.relative_to(root).as_posix()) not in files:
                stale.append(StaleFile(relative, "is not a file that the generator writes"))
    if stale:
        raise RepositoryError(f"{root} is stale: {'; '.join(map(str, stale))}. Run: mlcls repository.")
