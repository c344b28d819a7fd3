"""Change several files of a dataset together: all of them or none, whatever happens in between.

Each file that is replaced is kept as `NAME.bak`, as in PaddleX, or as `NAME.bak2` and so on if there already is a
`.bak` of something else. Before the first change a journal is written that says how to undo everything. It is removed
after the last change; whoever finds a journal first undoes everything in it.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from mlcls.base.files import STAGING_PREFIX, write_bytes, write_text
from mlcls.errors import DatasetError

BACKUP_SUFFIX: Final = ".bak"
JOURNAL: Final = ".mlcls-journal.json"


class _Step(NamedTuple):
    """One file of a change.

    Attributes:
        name: The file, relative to the dataset.
        backup: The backup of its old content; empty if it did not exist.
        is_new: Whether the change makes this backup; otherwise there already was one with the same content.
    """

    name: str
    backup: str = ""
    is_new: bool = True


def replace_files(root: Path, files: Mapping[str, bytes | None]) -> dict[str, str]:
    """Replace files of a dataset, all or none of them; unchanged files are not touched.

    The files are the new content by path relative to the dataset; None removes a file.

    Returns:
        Name of the backup of each file that was replaced or removed.

    Raises:
        DatasetError: A file could not be written; everything is as it was.
    """
    with _locked(root):
        _undo(root)
        steps = [step for name, content in files.items() if (step := _plan_step(root, name, content)) is not None]
        if not steps:
            return {}
        try:
            write_text(root / JOURNAL, json.dumps(steps, indent=2) + "\n")
            for step in steps:
                _do_step(root, step, files[step.name])
            (root / JOURNAL).unlink()
        except BaseException as error:
            _undo(root)
            if isinstance(error, OSError):
                names = ", ".join(step.name for step in steps)
                raise DatasetError(f"{root}: expected to write {names}, got: {error}; nothing was changed.") from error
            raise
    return {step.name: step.backup for step in steps if step.backup}


def recover(root: Path) -> None:
    """Undo what an interrupted `replace_files` has left half done.

    Raises:
        DatasetError: It cannot be undone.
    """
    if (root / JOURNAL).exists():
        with _locked(root):
            _undo(root)


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Keep other processes of this machine from changing the dataset; the folder is the lock, so that no file stays."""
    folder = os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _plan_step(root: Path, name: str, content: bytes | None) -> _Step | None:
    path = root / name
    if not path.exists():
        return None if content is None else _Step(name)
    old = None if content is None else path.read_bytes()
    if content is not None and old == content:
        return None
    backups = (f"{name}{BACKUP_SUFFIX}{number if number > 1 else ''}" for number in itertools.count(1))
    for backup in backups:
        if not (root / backup).exists():
            return _Step(name, backup)
        if content is not None and (root / backup).read_bytes() == old:
            return _Step(name, backup, is_new=False)
    return None


def _do_step(root: Path, step: _Step, content: bytes | None) -> None:
    path = root / step.name
    if content is None:
        os.rename(path, root / step.backup)
        return
    if step.backup and step.is_new:
        write_bytes(root / step.backup, path.read_bytes())
    write_bytes(path, content)


def _undo(root: Path) -> None:
    """Undo the steps of the journal, done or not; can itself be interrupted and repeated."""
    for leftover in root.glob(f"{STAGING_PREFIX}*"):
        if leftover.is_file():
            leftover.unlink(missing_ok=True)
    journal = root / JOURNAL
    try:
        steps = [_Step(*entry) for entry in json.loads(journal.read_bytes())]
    except FileNotFoundError:
        return
    except (OSError, ValueError, TypeError) as error:
        raise DatasetError(
            f"{journal}: expected the journal of an interrupted change, got a file that cannot be read ({error}); "
            f"compare the files with their {BACKUP_SUFFIX} yourself, then remove the journal."
        ) from None
    for step in steps:
        path, backup = root / step.name, root / step.backup
        if not step.backup:
            path.unlink(missing_ok=True)
        elif not step.is_new:
            write_bytes(path, backup.read_bytes())
        elif backup.exists():
            os.replace(backup, path)
    journal.unlink()
