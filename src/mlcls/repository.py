"""The Triton model repository: committed configurations, and version folders with weights that `mlcls` fills in.

    NAME/                config.pbtxt  labels.txt  1/
    NAME_preprocess/     config.pbtxt              1/{manifest,model_spec}.json
    NAME_engine/         config.pbtxt  configs/    1/{manifest,model_spec}.json  1/model.onnx
    NAME_postprocess/    config.pbtxt  labels.txt  1/{manifest,model_spec}.json

Each step has a copy of the spec in its version folder, since Triton gives a backend its own folder only, and copies
each model by itself where the repository is in an object store.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from mlcls import triton_config
from mlcls.atomic import STAGING_PREFIX, folder_lock, replace_folder, write_text
from mlcls.catalog import OFFICIAL_MODELS, official_spec
from mlcls.errors import RepositoryError
from mlcls.manifest import EngineRecord, verify_folder, write_manifest
from mlcls.model_spec import FILE_NAME, ModelSpec
from mlcls.triton_config import ENGINE_SUFFIX, LABELS_FILE, POSTPROCESS_SUFFIX, STEP_SUFFIXES

VERSION: Final = "1"


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


def render_files(spec: ModelSpec) -> dict[str, str]:
    """The text of every committed file of a model, by its path in the repository."""
    files = {path: triton_config.format_config(config) for path, config in triton_config.build_configs(spec).items()}
    labels = "".join(f"{label}\n" for label in spec.labels)
    files[f"{spec.name}/{LABELS_FILE}"] = labels
    files[f"{spec.name}{POSTPROCESS_SUFFIX}/{LABELS_FILE}"] = labels
    return files


def write_configs(root: Path, spec: ModelSpec) -> list[Path]:
    """Writes the committed files of a model, those that differ.

    Returns:
        The files that changed.
    """
    changed = []
    for relative, text in render_files(spec).items():
        path = root / relative
        if not path.is_file() or path.read_bytes() != text.encode():
            write_text(path, text)
            changed.append(path)
    return changed


def check_name(name: str) -> None:
    """Refuses a name that another model's step could have.

    Raises:
        RepositoryError: It ends as the steps' names do.
    """
    if name.endswith(STEP_SUFFIXES):
        raise RepositoryError(f"Expected a name that ends in none of {', '.join(STEP_SUFFIXES)}, got {name!r}.")


def add_model(root: Path, spec: ModelSpec, onnx_model: Path, record: EngineRecord) -> None:
    """Puts a converted model into the repository, in place of one of the same name.

    Everything is written to a staging folder first. The ensemble's version folder goes first and comes last: while it
    is missing, a half-replaced model cannot be served. Two processes that add models wait for each other.

    Args:
        root: The model repository.
        spec: The spec, with the digest of the ONNX file.
        onnx_model: The ONNX file; it is moved.
        record: Where the ONNX file came from.

    Raises:
        RepositoryError: The name is one that another model's step could have.
    """
    check_name(spec.name)
    with folder_lock(root), tempfile.TemporaryDirectory(prefix=STAGING_PREFIX, dir=root) as temporary:
        staging = Path(temporary)
        for suffix in STEP_SUFFIXES:
            write_text(staging / suffix / FILE_NAME, spec.to_json())
        shutil.move(onnx_model, staging / ENGINE_SUFFIX / record.file)
        for suffix in STEP_SUFFIXES:
            write_manifest(staging / suffix, spec.name + suffix, [record] if suffix == ENGINE_SUFFIX else [])
        (staging / "ensemble").mkdir()
        shutil.rmtree(root / spec.name / VERSION, ignore_errors=True)
        write_configs(root, spec)
        for suffix in STEP_SUFFIXES:
            replace_folder(staging / suffix, root / (spec.name + suffix) / VERSION)
        replace_folder(staging / "ensemble", root / spec.name / VERSION)


def list_models(root: Path) -> list[str]:
    """Names of the ensembles of a repository, imported or not."""
    if not root.is_dir():
        raise RepositoryError(f"Expected a model repository, got {root}, which is no folder; see --repository.")
    return sorted(
        path.name
        for path in root.iterdir()
        if (path / "config.pbtxt").is_file() and (root / (path.name + ENGINE_SUFFIX)).is_dir()
    )


def is_imported(root: Path, name: str) -> bool:
    """Whether the version folders of a model are filled in."""
    return (root / name / VERSION).is_dir()


def read_spec(root: Path, name: str) -> ModelSpec:
    """The spec of an imported model, after checking that its steps belong together.

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
    if not is_imported(root, name):
        raise RepositoryError(
            f"The model {name} in {root} has no weights yet: {name}/{VERSION} does not exist. Import it: "
            f"mlcls import {name if name in OFFICIAL_MODELS else f'FOLDER --name {name}'}."
        )
    specs = {suffix: ModelSpec.read(root / (name + suffix) / VERSION / FILE_NAME) for suffix in STEP_SUFFIXES}
    spec = specs[ENGINE_SUFFIX]
    for suffix, other in specs.items():
        if other != spec:
            raise RepositoryError(
                f"{root / (name + suffix) / VERSION / FILE_NAME} is not the same as the spec of {name}{ENGINE_SUFFIX}: "
                f"the folders come from different imports. Import the model again."
            )
    if spec.name != name:
        raise RepositoryError(f"The spec of {name} in {root} is that of {spec.name!r}. Import the model again.")
    for suffix in STEP_SUFFIXES:
        verify_folder(root / (name + suffix) / VERSION, name + suffix, [FILE_NAME])
    return spec


def find_weights(root: Path, name: str, target: triton_config.Target) -> Path:
    """The engine's model file for a target.

    Raises:
        RepositoryError: It is missing.
    """
    path = root / (name + ENGINE_SUFFIX) / VERSION / triton_config.ENGINE_TARGETS[target].model_file
    if not path.is_file():
        raise RepositoryError(
            f"{path} does not exist, which the target {target!r} needs. "
            + ("Build it in the serving image." if target == "gpu" else "Import the model again: mlcls import.")
        )
    return path


def expected_specs(root: Path) -> list[ModelSpec]:
    """The specs that the repository's configurations come from.

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
    """The generated files that are missing, differ from what the generator writes, or belong to nothing."""
    stale = []
    expected: set[str] = set()
    owners: set[str] = set()
    for spec in specs:
        owners.update({spec.name, *(spec.name + suffix for suffix in STEP_SUFFIXES)})
        for relative, text in render_files(spec).items():
            expected.add(relative)
            path = root / relative
            try:
                found = path.read_bytes()
            except FileNotFoundError:
                stale.append(StaleFile(relative, "missing"))
                continue
            if found != text.encode():
                stale.append(StaleFile(relative, "differs from what the generator writes"))
    if root.is_dir():
        for path in sorted(root.rglob("*.pbtxt")):
            relative = path.relative_to(root).as_posix()
            if relative not in expected and relative.split("/")[0] in owners:
                stale.append(StaleFile(relative, "is not a file that the generator writes"))
            elif relative.split("/")[0] not in owners and not relative.startswith(STAGING_PREFIX):
                stale.append(StaleFile(relative, "belongs to no model of the repository"))
    return stale


def require_fresh(root: Path, spec: ModelSpec) -> None:
    """Refuses to serve a model whose configurations do not fit its spec.

    Raises:
        RepositoryError: A configuration is stale.
    """
    own = {spec.name, *(spec.name + suffix for suffix in STEP_SUFFIXES)}
    stale = [file for file in find_stale(root, [spec]) if file.path.split("/")[0] in own]
    if stale:
        raise RepositoryError(f"{root} is stale: {'; '.join(map(str, stale))}. Run: mlcls repository.")
