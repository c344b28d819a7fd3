"""Files and folders that appear complete or not at all, locks on folders, and digests of files."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Final

# Prefix of temporary files and folders, by which those that a killed process left behind are recognized.
STAGING_PREFIX: Final = ".mlcls-staging-"
LOCK_NAME: Final = ".mlcls-lock"

# of <fcntl.h> and <linux/fs.h>
_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2

_REMEDIES: Final = {
    errno.ENOSPC: "free some space on its disk",
    errno.EDQUOT: "free some space on its disk, or have the quota raised",
    errno.EROFS: "it is on a read-only disk; choose another place",
    errno.EACCES: "run as a user who may do this, or change its owner or permissions",
    errno.EPERM: "run as a user who may do this, or change its owner or permissions",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path",
    errno.EISDIR: "check the path",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.EMFILE: "allow more open files: ulimit -n",
}


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file, like `write_bytes`."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file under a temporary name in the same folder, then rename it; create parent folders as needed."""
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=STAGING_PREFIX, dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)  # mkstemp makes files that only the owner can read
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise


@contextlib.contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """Put a path into an `OSError` of the block that names none, as when the disk is full, or a temporary file."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and (error.filename is None or STAGING_PREFIX in str(error.filename)):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def describe_os_error(error: OSError) -> str:
    """Return the text of an error of the operating system: the path, what is wrong, and what to do."""
    if error.errno is None:
        return str(error)
    paths = [str(path) for path in (error.filename, error.filename2) if path is not None]
    text = f"{' -> '.join(paths)}: {error.strerror}" if paths else str(error.strerror)
    remedy = _REMEDIES.get(error.errno, "check this path and its disk" if paths else None)
    return f"{text}; {remedy}." if remedy else f"{text}."


def require_writable(folder: Path) -> None:
    """Check that a file can be made in a folder, or in the nearest one above it that exists.

    Raises:
        OSError: It cannot; the error names the folder.
    """
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(prefix=STAGING_PREFIX, dir=existing):
            pass
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(existing)) from None


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder while several of its files change; wait for the one that holds the lock."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK_NAME).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed, by the kernel if need be
        yield


def is_locked(folder: Path) -> bool:
    """Return whether another process holds `folder_lock` on a folder; needs read access only."""
    try:
        with (folder / LOCK_NAME).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


@contextlib.contextmanager
def held_folder(parent: Path, prefix: str = STAGING_PREFIX) -> Iterator[Path]:
    """Yield a fresh folder, which is removed when the block ends.

    Until then a file in it is locked. If the process is killed, the next one that makes a folder here sees that nobody
    holds the old one, and removes it.
    """
    for abandoned in abandoned_folders(parent, prefix):
        shutil.rmtree(abandoned, ignore_errors=True)
    with contextlib.ExitStack() as stack:
        folder = None
        while folder is None:
            made = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
            stack.callback(shutil.rmtree, made, ignore_errors=True)
            made.chmod(0o755)
            lock = stack.enter_context((made / LOCK_NAME).open("a"))
            fcntl.flock(lock, fcntl.LOCK_EX)
            if (made / LOCK_NAME).exists():  # else it was taken for an abandoned one right before it was locked
                folder = made
        yield folder


def abandoned_folders(parent: Path, prefix: str = STAGING_PREFIX) -> Iterator[Path]:
    """Yield this user's folders that were made by `held_folder` in processes that are gone, each while it is locked."""
    for folder in sorted(parent.glob(f"{prefix}*")):
        with contextlib.suppress(OSError):  # held, or without a lock: of an older release, or not ours
            state = folder.lstat()
            if stat.S_ISDIR(state.st_mode) and state.st_uid == os.geteuid():
                with (folder / LOCK_NAME).open("r+") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    yield folder


@contextlib.contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """Yield a fresh folder that takes the place of `target` when the block ends without an error.

    Until then an existing `target` stays as it was; if the block raises, it is kept.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with held_folder(target.parent) as folder:
        staging = folder / target.name
        staging.mkdir()
        staging.chmod(0o755)
        yield staging
        replace_folder(staging, target)


def replace_folder(source: Path, target: Path) -> None:
    """Rename `source` to `target`; an existing `target` is swapped with it atomically and then removed."""
    if not target.exists():
        os.rename(source, target)
        return
    if not _exchange(source, target):
        retired = target.with_name(f"{STAGING_PREFIX}{uuid.uuid4().hex}")
        os.rename(target, retired)
        try:
            os.rename(source, target)
        except BaseException:
            os.rename(retired, target)
            raise
        source = retired
    if source.is_dir() and not source.is_symlink():  # what was the target
        shutil.rmtree(source, ignore_errors=True)
    else:
        source.unlink()


def sha256_of(path: Path) -> str:
    """Return the SHA-256 digest of a file's content in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _exchange(one: Path, other: Path) -> bool:
    """Swap two paths atomically with `renameat2(2)`; return False if the kernel or the file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL):
        return False
    raise OSError(number, os.strerror(number), str(one), None, str(other))
