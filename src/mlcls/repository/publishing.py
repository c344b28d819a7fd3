"""Writes versions of models into the repository, chooses the active one, and removes old ones.

After each single write, a server that starts on the repository serves one complete version: a version's steps come
before its own folder, and that before the one file that makes it active. What an interrupted command leaves is a
complete version that is not active, or folders that belong to none and go with the next command.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlcls.base.files import STAGING_PREFIX, folder_lock, replace_folder, write_bytes, write_text
from mlcls.errors import ConfigError, RepositoryError
from mlcls.model.spec import FILE_NAME, ModelSpec
from mlcls.repository.manifest import EngineRecord, verify_folder, write_manifest
from mlcls.repository.models import (
    check_name,
    expected_files,
    read_spec,
    read_version_spec,
    render_files,
    render_version,
    write_configs,
    write_files,
)
from mlcls.repository.names import ENGINE_SUFFIX, FIRST_VERSION, POSTPROCESS_SUFFIX, STEP_SUFFIXES, step_name
from mlcls.repository.settings import DEFAULT_MODEL_SETTINGS, ModelSettings, read_settings, settings_path
from mlcls.repository.triton_config import preprocess_paths
from mlcls.repository.versions import (
    LAST_NUMBER_NAME,
    RECORD_NAME,
    active_version,
    describe,
    find_leftovers,
    list_versions,
    next_version,
    read_replaced,
    render_record,
    require_version,
    step_folders,
)


def add_model(
    root: Path, spec: ModelSpec, onnx_model: Path, record: EngineRecord, *, replace_versions: bool = False
) -> None:
    """Put a converted model into the repository as its only version, in place of one of the same name.

    Everything is written to a staging folder first. The ensemble's version folder goes first and comes last: while it
    is missing, a half-replaced model cannot be served. Two processes that change a repository wait for each other.

    Args:
        root: The model repository.
        spec: The spec, with the digest of the ONNX file.
        onnx_model: The ONNX file; it is moved.
        record: Where the ONNX file came from.
        replace_versions: Whether later versions may go.

    Raises:
        RepositoryError: The name is one that another model's step could have, or there are later versions.
    """
    check_name(spec.name)
    with folder_lock(root):
        if not replace_versions:
            require_unversioned(root, spec.name)
        _put_first_version(root, spec, onnx_model, record)


def require_unversioned(root: Path, name: str) -> None:
    """Refuse to replace a model of which later versions were published.

    Raises:
        RepositoryError: There are some.
    """
    versions = list_versions(root, name)
    if versions not in ([], [FIRST_VERSION]):
        raise RepositoryError(
            f"{name} in {root} has the versions {describe(versions)}. Add the next one: mlcls publish. Or remove them "
            f"all and start again: mlcls import --replace."
        )


def add_version(root: Path, spec: ModelSpec, onnx_model: Path, record: EngineRecord, taken: Iterable[int] = ()) -> int:
    """Put a converted model into the repository as its next version, which is not active yet.

    The first version of a model is active at once, since no other could be. The caller holds the lock of the
    repository.

    Args:
        root: The model repository.
        spec: The spec, with the digest of the ONNX file.
        onnx_model: The ONNX file; it is moved.
        record: Where the ONNX file came from.
        taken: Numbers that it must not have: a running server still has versions of these numbers.

    Returns:
        The version's number, above all that are there, were there or are taken.

    Raises:
        RepositoryError: The name is one that another model's step could have.
    """
    check_name(spec.name)
    name = spec.name
    if not list_versions(root, name):
        _put_first_version(root, spec, onnx_model, record)
        return FIRST_VERSION

    def stage(staging: Path, version: int, replaces: int) -> None:
        _stage_folders(staging, spec, onnx_model, record, version, replaces)

    return _add_next(root, spec, stage, taken)


def add_calibrated_version(
    root: Path,
    name: str,
    base: int,
    thresholds: Sequence[float],
    calibration: Mapping[str, Any],
    taken: Iterable[int] = (),
) -> int:
    """Put a version into the repository that differs from another one by its thresholds; it is not active yet.

    All engines of that version are in it, as hard links. The caller holds the lock of the repository.

    Args:
        root: The model repository.
        name: The model.
        base: The version to take everything else from.
        thresholds: One for each label.
        calibration: What the manifest of postprocess says of them.
        taken: See `add_version`.

    Returns:
        The version's number.

    Raises:
        RepositoryError: The version does not exist, or is damaged.
        SpecError: The thresholds are not one number for each label.
    """
    require_version(root, name, base)
    spec = dataclasses.replace(read_version_spec(root, name, base), thresholds=tuple(thresholds))
    folder = step_folders(root, name, base)[ENGINE_SUFFIX]
    engines = verify_folder(folder, folder.parent.name)  # content too: the new manifest vouches for it

    def stage(staging: Path, version: int, replaces: int) -> None:
        for suffix in STEP_SUFFIXES:
            write_text(staging / suffix / FILE_NAME, spec.to_json())
        for file in engines.files:
            if file != FILE_NAME:
                os.link(folder / file, staging / ENGINE_SUFFIX / file)
        for suffix in STEP_SUFFIXES:
            write_manifest(
                staging / suffix,
                step_name(name, suffix, version),
                engines.engines if suffix == ENGINE_SUFFIX else (),
                calibration if suffix == POSTPROCESS_SUFFIX else None,
            )
        write_text(staging / "ensemble" / RECORD_NAME, render_record(replaces))

    return _add_next(root, spec, stage, taken)


def _add_next(root: Path, spec: ModelSpec, stage: Callable[[Path, int, int], None], taken: Iterable[int]) -> int:
    """Add a version; `stage(staging, version, replace)` writes its folders as `_stage_folders` does."""
    name = spec.name
    remove_leftovers(root, name)
    version = max([next_version(root, name), *(number + 1 for number in taken)])
    write_text(root / name / LAST_NUMBER_NAME, f"{version}\n")
    with tempfile.TemporaryDirectory(prefix=STAGING_PREFIX, dir=root) as temporary:
        staging = Path(temporary)
        stage(staging, version, active_version(root, name))
        models = staging / "models"
        write_files(models, render_version(spec, version, read_settings(root, name)))
        for suffix in STEP_SUFFIXES:
            step = step_name(name, suffix, version)
            os.rename(staging / suffix, models / step / str(version))
            os.rename(models / step, root / step)
        os.rename(staging / "ensemble" / RECORD_NAME, models / name / str(version) / RECORD_NAME)
        os.rename(models / name / str(version), root / name / str(version))
    return version


def pin_version(root: Path, name: str, version: int) -> None:
    """Make a version the active one, by one file; the caller holds the lock of the repository.

    Raises:
        RepositoryError: The version does not exist, or is damaged.
    """
    require_version(root, name, version)
    path = f"{name}/config.pbtxt"
    spec = read_version_spec(root, name, version)
    write_text(root / path, render_files(spec, version, read_settings(root, name))[path])


def remove_version(root: Path, name: str, version: int) -> None:
    """Remove a version; the caller holds the lock of the repository.

    Where it is the only one, the configurations stay, as those of a model that is not imported.

    Raises:
        RepositoryError: It is the active one, and there are others.
    """
    others = [other for other in list_versions(root, name) if other != version]
    if others and active_version(root, name) == version:
        raise RepositoryError(f"{name} in {root} serves version {version}, which therefore cannot be removed.")
    with tempfile.TemporaryDirectory(prefix=STAGING_PREFIX, dir=root) as temporary:
        os.rename(root / name / str(version), Path(temporary) / str(version))
        for folder in step_folders(root, name, version).values():
            shutil.rmtree(folder.parent if others else folder, ignore_errors=True)


def prune_versions(root: Path, name: str, keep: int) -> list[int]:
    """Remove old versions but the active one, the one before it, and the newest others, `keep` in all.

    The caller holds the lock of the repository.

    Returns:
        The numbers of the versions that were removed.
    """
    active = active_version(root, name)
    others = [version for version in reversed(list_versions(root, name)) if version != active]
    replaced = read_replaced(root, name, active)
    others.sort(key=lambda version: version != replaced)  # stable: the newest first otherwise
    removed = sorted(others[max(keep - 1, 0) :])
    for version in removed:
        remove_version(root, name, version)
    return removed


def remove_leftovers(root: Path, name: str) -> None:
    """Remove the folders of versions that do not exist; the caller holds the lock of the repository."""
    for folders in find_leftovers(root, name).values():
        for folder in folders:
            shutil.rmtree(folder)


def _put_first_version(root: Path, spec: ModelSpec, onnx_model: Path, record: EngineRecord) -> None:
    name = spec.name
    settings = read_settings(root, name)  # of the model that it replaces; a file that is wrong ends the import here
    with tempfile.TemporaryDirectory(prefix=STAGING_PREFIX, dir=root) as temporary:
        staging = Path(temporary)
        _stage_folders(staging, spec, onnx_model, record, FIRST_VERSION, None)
        files = render_files(spec, settings=settings)
        write_files(staging / "files", files)  # a disk that is full is noticed here, with the old model in its place
        with _new_folders(root, files):
            for version in list_versions(root, name):
                os.rename(root / name / str(version), staging / str(version))
            _move_files(staging / "files", root, files)
        for suffix, folder in step_folders(root, name, FIRST_VERSION).items():
            replace_folder(staging / suffix, folder)
        replace_folder(staging / "ensemble", root / name / str(FIRST_VERSION))
    remove_leftovers(root, name)


@contextlib.contextmanager
def _new_folders(root: Path, files: Iterable[str]) -> Iterator[None]:
    """Make the folders of files, and remove those that are empty again where the block raises."""
    folders = sorted({root / parent for file in files for parent in Path(file).parents if parent != Path()})
    made = [folder for folder in folders if not folder.exists()]
    try:
        for folder in made:
            folder.mkdir()
        yield
    except BaseException:
        for folder in reversed(made):
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def _move_files(staging: Path, root: Path, files: Mapping[str, str]) -> None:
    """Put staged files into the repository, but those that are there already."""
    for path, text in files.items():
        target = root / path
        if not target.is_file() or target.read_bytes() != text.encode():
            os.replace(staging / path, target)


def _stage_folders(
    staging: Path, spec: ModelSpec, onnx_model: Path, record: EngineRecord, version: int, replaces: int | None
) -> None:
    """Write the version folders of a model into a staging folder: one by the suffix of each step, and `ensemble`."""
    for suffix in STEP_SUFFIXES:
        write_text(staging / suffix / FILE_NAME, spec.to_json())
    shutil.move(onnx_model, staging / ENGINE_SUFFIX / record.file)
    for suffix in STEP_SUFFIXES:
        step = step_name(spec.name, suffix, version)
        write_manifest(staging / suffix, step, [record] if suffix == ENGINE_SUFFIX else [])
    write_text(staging / "ensemble" / RECORD_NAME, render_record(replaces))


def change_settings(
    root: Path,
    name: str,
    change: Callable[[ModelSettings], ModelSettings],
    evidence: Mapping[str, bytes | None] | None = None,
) -> list[Path]:
    """Change a model's settings, and write the configurations of all its versions that follow from them.

    What fails or is interrupted leaves every file as it was. Where the process is killed meanwhile, the settings can be
    the new ones and a part of the configurations stale: such a model is not served until `mlcls repository` mends it.

    Args:
        root: The model repository.
        name: An imported model.
        change: Gives the new settings, from those that are there when nobody else can change them.
        evidence: Content of files beside `serving.json`, by name; None removes one.

    Returns:
        The configurations that changed.

    Raises:
        RepositoryError: The model is not imported, or damaged.
        ConfigError: Its `serving.json` is wrong.
    """
    with folder_lock(root):
        spec = read_spec(root, name)
        settings = change(read_settings(root, name))
        path = settings_path(root, name)
        files = {path.parent / file: content for file, content in (evidence or {}).items()}
        # of default settings no file is kept: the defaults of a later mlcls are then taken
        files[path] = None if settings == DEFAULT_MODEL_SETTINGS else settings.to_json().encode()
        configs = set(expected_files(root, spec, settings))
        for version in {active_version(root, name), *list_versions(root, name)}:
            configs.update(preprocess_paths(name, version))
        before = {touched: _read(touched) for touched in [*files, *(root / config for config in configs)]}
        try:
            for file, content in files.items():
                _put(file, content)
            return write_configs(root, spec)
        except BaseException:
            for file, content in before.items():
                if _read(file) != content:
                    _put(file, content)
            raise


def remove_wrong_settings(root: Path, name: str) -> bool:
    """Remove a `serving.json` that cannot be read; tell whether there was one."""
    try:
        read_settings(root, name)
    except ConfigError:
        settings_path(root, name).unlink(missing_ok=True)
        return True
    return False


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _put(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink(missing_ok=True)
    else:
        write_bytes(path, content)
