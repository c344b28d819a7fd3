"""Add versions of models to the repository, choose the active one, remove old ones, and change settings.

After each single write, a server that starts on the repository serves one complete version: a version's steps come
before its own folder, and that before the one file that makes it active. What an interrupted command leaves is a
complete version that is not active, or folders that belong to none and go with the next command.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from mlcls.base.files import STAGING_PREFIX, replace_folder, write_bytes, write_text
from mlcls.errors import ConfigError, RepositoryError
from mlcls.repository.configurations import (
    expected_files,
    possible_paths,
    render_files,
    render_version,
    write_configs,
    write_files,
)
from mlcls.repository.models import ModelVersion, Repository, describe
from mlcls.repository.names import (
    CONFIG_FILE,
    FIRST_VERSION,
    LAST_NUMBER_FILE,
    STEP_SUFFIXES,
    VERSION_FILE,
    check_name,
)
from mlcls.repository.settings import DEFAULT_MODEL_SETTINGS, ModelSettings, settings_path
from mlcls.repository.staging import ENSEMBLE_FOLDER, StagedVersion


def add_model(repository: Repository, staged: StagedVersion, *, replace_versions: bool = False) -> None:
    """Put a model into the repository as its only version, in place of one of the same name.

    Everything is written to a staging folder first. The ensemble's version folder goes first and comes last: while it
    is missing, a half-replaced model cannot be served. Two processes that change a repository wait for each other.

    Args:
        repository: The model repository.
        staged: The model.
        replace_versions: Whether later versions may go.

    Raises:
        RepositoryError: The name is one that another model's step could have, or there are later versions.
    """
    check_name(staged.spec.name)
    with repository.lock():
        if not replace_versions:
            require_unversioned(repository, staged.spec.name)
        _put_first_version(repository, staged)


def require_unversioned(repository: Repository, name: str) -> None:
    """Refuse to replace a model of which later versions were published.

    Raises:
        RepositoryError: There are some.
    """
    numbers = repository.numbers(name)
    if numbers not in ([], [FIRST_VERSION]):
        raise RepositoryError(
            f"{name} in {repository} has the versions {describe(numbers)}. Add the next one: mlcls publish. Or remove "
            f"them all and start again: mlcls import --replace."
        )


def add_version(repository: Repository, staged: StagedVersion, taken: Iterable[int] = ()) -> ModelVersion:
    """Put a version into the repository as a model's next one, which is not active yet.

    The first version of a model is active at once, since no other could be. The caller holds the lock of the
    repository.

    Args:
        repository: The model repository.
        staged: The version.
        taken: Numbers that it must not have: a running server still has versions of these numbers.

    Returns:
        The version; its number is above all that are there, were there or are taken.

    Raises:
        RepositoryError: The name is one that another model's step could have, or what it comes from is damaged.
    """
    name, root = staged.spec.name, repository.root
    check_name(name)
    if not repository.is_imported(name):
        return _put_first_version(repository, staged)
    remove_leftovers(repository, name)
    version = ModelVersion(repository, name, repository.next_number(name, taken))
    with tempfile.TemporaryDirectory(prefix=STAGING_PREFIX, dir=root) as temporary:
        staging = Path(temporary)
        staged.write(staging, version.number, repository.active_number(name))
        write_text(root / name / LAST_NUMBER_FILE, f"{version.number}\n")
        models = staging / "models"
        write_files(models, render_version(staged.spec, version.number, repository.settings(name)))
        for suffix in STEP_SUFFIXES:
            os.rename(staging / suffix, models / version.step(suffix) / str(version.number))
            os.rename(models / version.step(suffix), root / version.step(suffix))
        ensemble = models / name / str(version.number)
        os.rename(staging / ENSEMBLE_FOLDER / VERSION_FILE, ensemble / VERSION_FILE)
        os.rename(ensemble, version.folder)
    return version


def pin_version(version: ModelVersion) -> None:
    """Make a version the active one, by one file; the caller holds the lock of the repository.

    Raises:
        RepositoryError: The version is damaged.
    """
    repository = version.repository
    path = f"{version.name}/{CONFIG_FILE}"
    files = render_files(version.spec, version.number, repository.settings(version.name))
    write_text(repository.root / path, files[path])


def remove_version(version: ModelVersion) -> None:
    """Remove a version; the caller holds the lock of the repository.

    If it is the only one, the configurations stay, as those of a model that is not imported.

    Raises:
        RepositoryError: It is the active one, and there are others.
    """
    repository, name = version.repository, version.name
    others = [number for number in repository.numbers(name) if number != version.number]
    if others and repository.active_number(name) == version.number:
        raise RepositoryError(f"{name} in {repository} serves version {version.number}, so it cannot be removed.")
    with tempfile.TemporaryDirectory(prefix=STAGING_PREFIX, dir=repository.root) as temporary:
        os.rename(version.folder, Path(temporary) / str(version.number))
        for step, folder in zip(version.steps, version.folders.values(), strict=True):
            shutil.rmtree(repository.root / step if others else folder, ignore_errors=True)


def prune_versions(repository: Repository, name: str, keep: int) -> list[int]:
    """Remove old versions but the active one, the one before it, and the newest others, `keep` in all.

    The caller holds the lock of the repository.

    Returns:
        The numbers of the versions that were removed.
    """
    active = repository.active(name)
    others = [version for version in reversed(repository.versions(name)) if version != active]
    replaced = active.replaced
    others.sort(key=lambda version: version.number != replaced)  # stable: the newest first otherwise
    removed = sorted(others[max(keep - 1, 0) :], key=lambda version: version.number)
    for version in removed:
        remove_version(version)
    return [version.number for version in removed]


def remove_leftovers(repository: Repository, name: str) -> None:
    """Remove the folders of versions that do not exist; the caller holds the lock of the repository."""
    for folders in repository.leftovers(name).values():
        for folder in folders:
            shutil.rmtree(folder)


def _put_first_version(repository: Repository, staged: StagedVersion) -> ModelVersion:
    name, root = staged.spec.name, repository.root
    version = ModelVersion(repository, name, FIRST_VERSION)
    settings = repository.settings(name)  # of the model that it replaces; a file that is wrong ends the import here
    with tempfile.TemporaryDirectory(prefix=STAGING_PREFIX, dir=root) as temporary:
        staging = Path(temporary)
        staged.write(staging, FIRST_VERSION, None)
        files = render_files(staged.spec, settings=settings)
        write_files(staging / "files", files)  # a disk that is full is noticed here, with the old model in its place
        with _new_folders(root, files):
            for old in repository.versions(name):
                os.rename(old.folder, staging / str(old.number))
            _move_files(staging / "files", root, files)
        for suffix, folder in version.folders.items():
            replace_folder(staging / suffix, folder)
        replace_folder(staging / ENSEMBLE_FOLDER, version.folder)
    remove_leftovers(repository, name)
    return version


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


def change_settings(
    repository: Repository,
    name: str,
    change: Callable[[ModelSettings], ModelSettings],
    evidence: Mapping[str, bytes | None] | None = None,
) -> list[Path]:
    """Change a model's settings, and write the configurations of all its versions that follow from them.

    What fails or is interrupted leaves every file as it was. If the process is killed meanwhile, the settings can be
    the new ones and a part of the configurations stale: such a model is not served until `mlcls repository` mends it.

    Args:
        repository: The model repository.
        name: An imported model.
        change: Gives the new settings, from those that are there when nobody else can change them.
        evidence: Content of files beside `serving.json`, by name; None removes one.

    Returns:
        The configurations that changed.

    Raises:
        RepositoryError: The model is not imported, or damaged.
        ConfigError: Its `serving.json` is wrong.
    """
    with repository.lock():
        spec = repository.active(name).spec
        settings = change(repository.settings(name))
        path = settings_path(repository.root, name)
        files = {path.parent / file: content for file, content in (evidence or {}).items()}
        # of default settings no file is kept: the defaults of a later mlcls are then taken
        files[path] = None if settings == DEFAULT_MODEL_SETTINGS else settings.to_json().encode()
        configs = expected_files(repository, spec, settings).keys() | possible_paths(repository, name)
        before = {path: _read(path) for path in [*files, *(repository.root / config for config in configs)]}
        try:
            for file, content in files.items():
                _put(file, content)
            return write_configs(repository, spec)
        except BaseException:
            for file, content in before.items():
                if _read(file) != content:
                    _put(file, content)
            raise


def remove_wrong_settings(repository: Repository, name: str) -> bool:
    """Remove a `serving.json` that cannot be read; tell whether there was one."""
    try:
        repository.settings(name)
    except ConfigError:
        settings_path(repository.root, name).unlink(missing_ok=True)
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
