"""Add versions of models to the repository, choose the active one, remove old ones, and change settings.

After each single write, a server that starts on the repository serves one complete version: a version's steps are
written before its own folder, and that before the one file that makes it active. An interrupted command leaves a
complete version that is not active, or folders that belong to no version, which the next command removes.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from mlcls.base import documents
from mlcls.base.files import held_folder, replace_folder, write_text
from mlcls.errors import ConfigError, RepositoryError
from mlcls.repository.configurations import read_file, render_files, render_version, write_configs, write_files
from mlcls.repository.models import ModelVersion, Repository, format_numbers
from mlcls.repository.names import CONFIG_FILE, FIRST_VERSION, LAST_NUMBER_FILE, check_name
from mlcls.repository.settings import DEFAULT_MODEL_SETTINGS, SETTINGS_FILE, ModelSettings, settings_path
from mlcls.repository.staging import StagedVersion
from mlcls.repository.triton_config import ConfigBuilder, format_config


def add_model(repository: Repository, staged: StagedVersion, *, replace_versions: bool = False) -> None:
    """Put a model into the repository as its only version, in place of one of the same name.

    Everything is written to a staging folder first. The ensemble's version folder is removed first and added last:
    while it is missing, a half-replaced model cannot be served. Processes that change a repository wait for each other.

    Raises:
        RepositoryError: The name could be a step of another model, or there are later versions, which only
            `replace_versions` removes.
    """
    check_name(staged.spec.name)
    with repository.lock():
        if not replace_versions:
            require_unversioned(repository, staged.spec.name)
        _put_first_version(repository, staged)


def require_unversioned(repository: Repository, name: str) -> None:
    """Check that no later versions of a model were published, which an import would remove.

    Raises:
        RepositoryError: There are later versions.
    """
    numbers = repository.numbers(name)
    if numbers not in ([], [FIRST_VERSION]):
        raise RepositoryError(
            f"{name} in {repository} has the versions {format_numbers(numbers)}. Add the next one: mlcls publish. Or "
            f"replace them all: mlcls import --replace."
        )


def add_version(repository: Repository, staged: StagedVersion, taken: Iterable[int] = ()) -> ModelVersion:
    """Add a model's next version to the repository, without making it active.

    The first version of a model is active at once, since no other could be. The number is higher than all that exist,
    existed or are taken by a running server. The caller holds the lock of the repository.

    Raises:
        RepositoryError: The name could be a step of another model, or the version's source is damaged.
    """
    name, root = staged.spec.name, repository.root
    check_name(name)
    if not repository.is_imported(name):
        return _put_first_version(repository, staged)
    remove_leftovers(repository, name)
    version = ModelVersion(repository, name, repository.next_number(name, taken))
    with held_folder(root) as temporary:
        new = ModelVersion(Repository(temporary), name, version.number)
        staged.write(new, repository.active_number(name))
        write_files(new.repository.root, render_version(staged.spec, version.number, repository.settings(name)))
        write_text(root / name / LAST_NUMBER_FILE, f"{version.number}\n")
        for step in version.steps:
            os.rename(new.repository.root / step, root / step)
        os.rename(new.folder, version.folder)
    return version


def pin_version(version: ModelVersion) -> None:
    """Make a version the active one by writing one file; the caller holds the lock of the repository.

    Raises:
        RepositoryError: The version is damaged.
    """
    repository = version.repository
    config = ConfigBuilder(version.spec, version.number, repository.settings(version.name)).ensemble()
    write_text(repository.root / version.name / CONFIG_FILE, format_config(config))


def remove_version(version: ModelVersion) -> None:
    """Remove a version; the caller holds the lock of the repository.

    The configurations of a model's only version stay, as if the model were not imported.

    Raises:
        RepositoryError: It is active, and there are others.
    """
    repository, name = version.repository, version.name
    others = [number for number in repository.numbers(name) if number != version.number]
    if others and repository.active_number(name) == version.number:
        raise RepositoryError(f"{name} in {repository} serves version {version.number}, so it cannot be removed.")
    with held_folder(repository.root) as temporary:
        os.rename(version.folder, temporary / str(version.number))
        for step, folder in zip(version.steps, version.folders.values(), strict=True):
            shutil.rmtree(repository.root / step if others else folder, ignore_errors=True)


def prune_versions(repository: Repository, name: str, keep: int) -> list[int]:
    """Remove old versions; keep the active one, the one before it and the newest others, `keep` in all.

    The caller holds the lock of the repository. Return the numbers of the versions that were removed.
    """
    active = repository.active(name)
    others = [version for version in reversed(repository.versions(name)) if version != active]
    replaced = active.replaced
    others.sort(key=lambda version: version.number != replaced)  # stable, so the others stay newest first
    removed = sorted(others[max(keep - 1, 0) :], key=lambda version: version.number)
    for version in removed:
        remove_version(version)
    return [version.number for version in removed]


def remove_leftovers(repository: Repository, name: str) -> None:
    """Remove what killed commands left: folders of versions that do not exist, and unfinished files of any model.

    The caller holds the lock of the repository.
    """
    for folders in repository.leftovers(name).values():
        for folder in folders:
            shutil.rmtree(folder)
    for unfinished in repository.unfinished_files():
        unfinished.unlink()


def _put_first_version(repository: Repository, staged: StagedVersion) -> ModelVersion:
    name, root = staged.spec.name, repository.root
    version = ModelVersion(repository, name, FIRST_VERSION)
    settings = repository.settings(name)  # of the model that it replaces; fails here if the file is wrong
    with held_folder(root) as staging:
        new = ModelVersion(Repository(staging / "new"), name, FIRST_VERSION)
        staged.write(new, None)
        files = render_files(staged.spec, settings=settings)
        write_files(new.repository.root, files)  # fails here if the disk is full, with the old model still in place
        with _new_folders(root, files):
            for old in repository.versions(name):
                os.rename(old.folder, staging / str(old.number))
            for path, text in files.items():
                if read_file(root / path) != text.encode():
                    os.replace(new.repository.root / path, root / path)
        for suffix, folder in version.folders.items():
            replace_folder(new.folders[suffix], folder)
        replace_folder(new.folder, version.folder)
    remove_leftovers(repository, name)
    return version


@contextlib.contextmanager
def _new_folders(root: Path, files: Iterable[str]) -> Iterator[None]:
    """Create the folders of files; if the block fails, remove those that it left empty."""
    folders = sorted({root / parent for file in files for parent in Path(file).parents})
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


def change_settings(
    repository: Repository,
    name: str,
    change: Callable[[ModelSettings], ModelSettings],
    evidence: Mapping[str, bytes | None] | None = None,
) -> list[Path]:
    """Change an imported model's settings, write its configurations accordingly, and return those that changed.

    `change` gives the new settings for the old ones, while the repository is locked. `evidence` is the content of files
    to write beside `serving.json`, by name; None removes a file. If this fails or is interrupted, every file stays as
    it was. If the process is killed, the settings may be new and some configurations stale; such a model is not served
    until `mlcls repository` repairs it.

    Raises:
        RepositoryError: The model is not imported, or damaged.
        ConfigError: Its `serving.json`, or a new setting, is wrong.
    """
    with repository.lock():
        spec = repository.active(name).spec
        settings = documents.change(change(repository.settings(name)), ConfigError)
        files: dict[str, str | bytes | None] = {f"{name}/{file}": content for file, content in (evidence or {}).items()}
        # default settings have no file, so that a later mlcls uses its own defaults
        files[f"{name}/{SETTINGS_FILE}"] = None if settings == DEFAULT_MODEL_SETTINGS else settings.to_json()
        return write_configs(repository, spec, settings, files)


def remove_wrong_settings(repository: Repository, name: str) -> bool:
    """Remove a `serving.json` that cannot be read; return whether there was one."""
    try:
        repository.settings(name)
    except ConfigError:
        settings_path(repository.root, name).unlink(missing_ok=True)
        return True
    return False
