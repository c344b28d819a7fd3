"""Files: read errors as `InputError`, and writing so that a reader sees the old file or the whole new one."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import BinaryIO

from mlcls_client.errors import InputError, OutputError


@contextlib.contextmanager
def mapped_read_errors(path: str) -> Iterator[None]:
    """Turn errors of opening or reading an image file into `InputError`."""
    if not path:
        raise InputError("Expected the path of an image file or a folder, or a URL, got an empty text.")
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(
            f"Expected an image file or a folder at {path!r}, which does not exist; check the path."
        ) from error
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise InputError(f"Cannot read {path!r}: {getattr(error, 'strerror', None) or error}.") from error


def decoding_reason(error: Exception) -> str:
    """Return why an image cannot be decoded; Pillow's own text for an unknown format has the address of an object."""
    return "unknown format" if type(error).__name__ == "UnidentifiedImageError" else str(error)


class FileNames:
    """Names of files in folders. A name that another owner has gets a number."""

    def __init__(self) -> None:
        self._owners: dict[str, Hashable] = {}

    def choose(self, folder: Path, name: str, owner: Hashable) -> Path:
        """Return the path of an owner's file, the same one each time: `name`, or a name with `_2`, `_3`, ..."""
        path, number = folder / name, 1
        # File systems may ignore case.
        while self._owners.setdefault(str(path).casefold(), owner) != owner:
            number += 1
            path = folder / f"{Path(name).stem}_{number}{Path(name).suffix}"
        return path

    def __reduce__(self) -> tuple[type[FileNames], tuple[()]]:
        """Copy and pickle it without its names."""
        return FileNames, ()


def write_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file under a temporary name in the same folder, then rename it; folders are made as needed.

    Raises:
        OutputError: The file cannot be written; nothing is left behind and an older file is untouched.
    """
    staging = path.with_name(f".mlcls-{secrets.token_hex(8)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # Not tempfile: its files ignore the umask and are closed to the group.
            with staging.open("xb") as file:
                write(file)
            os.replace(staging, path)
        finally:
            staging.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        raise OutputError(f"Cannot write {str(path)!r}: {getattr(error, 'strerror', None) or error}.") from error
