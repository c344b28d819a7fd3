"""Unpack the archive of a PaddleX inference model, trusting nothing in it.

`tarfile` only parses the headers here. Its own safe extraction (`tarfile.data_filter`) is missing in older Python patch
releases, allows links, and has no limits on number or size.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Final, cast

from mlcls.base.files import staged_folder
from mlcls.errors import ModelFormatError
from mlcls.paddle.inference_yml import INFERENCE_YML

MAX_MEMBERS: Final = 1000
MAX_UNPACKED_BYTES: Final = 4 * 1024**3
# Largest single read: tarfile reads an extended header whole, and its size is only the archive's claim.
MAX_READ_BYTES: Final = 64 * 1024
# Most bytes that may follow the end mark, which is padded to the record size (10 KiB with GNU tar).
MAX_TRAILER_BYTES: Final = 1024**2
FILE_MODE: Final = 0o644
FOLDER_MODE: Final = 0o755
NAMES_SHOWN: Final = 10
NAME_SHOWN_CHARACTERS: Final = 200

# First bytes of a compressed file, and the standard module that opens it.
_COMPRESSIONS: Final[Mapping[bytes, str]] = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\xfd7zXZ\x00": "lzma"}
# What tarfile raises on broken headers; it leaks the errors of its number and text parsing.
_PARSE_ERRORS: Final = (tarfile.TarError, ValueError, IndexError, RecursionError)

_Members = dict[PurePosixPath, tarfile.TarInfo]


class _Source:
    """The decompressed bytes of an archive; bounds each read and turns read errors into `ModelFormatError`."""

    def __init__(self, archive: Path, file: IO[bytes]) -> None:
        self.archive = archive
        self.size_bytes = os.fstat(file.fileno()).st_size
        self.last_read = b""
        self._ended = False
        self._stream = file
        with self._mapped():
            head = file.read(max(map(len, _COMPRESSIONS)))
            file.seek(0)
        for magic, module in _COMPRESSIONS.items():
            if head.startswith(magic):
                with self._mapped():
                    self._stream = importlib.import_module(module).open(file)

    def damaged(self, why: object) -> ModelFormatError:
        """Return the error: the archive ends early, if a read reached its end, or is damaged for the reason `why`."""
        got = f"one that ends early at byte {self.size_bytes}" if self._ended else f"a damaged one ({why})"
        return ModelFormatError(f"{self.archive}: expected a complete tar, got {got}; download or copy it again.")

    def read(self, size: int, /) -> bytes:
        if not 0 <= size <= MAX_READ_BYTES:
            raise self.damaged(f"an extended header of {size} bytes, expected at most {MAX_READ_BYTES}")
        with self._mapped():
            self.last_read = self._stream.read(size)
        self._ended = len(self.last_read) < size
        return self.last_read

    def seek(self, position: int, /) -> None:
        with self._mapped():
            self._stream.seek(position)

    def tell(self) -> int:
        return self._stream.tell()

    @contextlib.contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except EOFError as error:
            self._ended = True
            raise self.damaged(error) from error
        except Exception as error:  # each compression has error classes of its own, of no common base
            raise self.damaged(f"{type(error).__name__}: {error}") from error


def extract_model(
    archive: Path, into: Path, *, max_members: int = MAX_MEMBERS, max_unpacked_bytes: int = MAX_UNPACKED_BYTES
) -> Path:
    """Unpack a PaddleX inference model from a tar, plain or compressed with gzip, bzip2 or xz.

    All members are checked before anything is written. Then they are written to a temporary folder next to `into`,
    which replaces `into` when it is complete; on failure an existing `into` stays as it was. Files get mode 0644 and
    folders 0755, whatever the archive says. What macOS adds is ignored: members named `._*` or below `__MACOSX`, and
    all of a pax header but a member's name and size.

    Args:
        archive: The archive file.
        into: Folder that will hold the archive's content and nothing else; what it held before is removed.
        max_members: Largest number of members, including ignored ones.
        max_unpacked_bytes: Largest total size of all members.

    Returns:
        The folder that holds `inference.yml`: `into` or a folder below it (official archives: `<MODEL>_infer`).

    Raises:
        ModelFormatError: The archive cannot be read, is damaged, does not hold exactly one `inference.yml`, exceeds a
            limit, or has a member that is a link, a device, a FIFO or sparse, or whose name is absolute, contains `..`
            or unprintable characters, or occurs twice; or `into` cannot be written.
    """
    try:
        file = archive.open("rb")
    except OSError as error:
        raise ModelFormatError(f"{archive}: expected an archive that can be read, got: {error}.") from error
    with file:
        source = _Source(archive, file)
        members = _list_members(source, max_members, max_unpacked_bytes)
        model = _find_model(archive, members)
        try:
            _replace(into.resolve(), source, members, max_unpacked_bytes)
        except OSError as error:
            raise ModelFormatError(
                f"{archive}: expected to unpack it into {into}, got: {error}; free that place or choose another folder."
            ) from error
    return into / model


def _list_members(source: _Source, max_members: int, max_bytes: int) -> _Members:
    """Read and check all headers, up to and including the archive's end."""
    head = source.read(tarfile.BLOCKSIZE)
    source.seek(0)
    members: _Members = {}
    count = total_bytes = 0
    try:
        with tarfile.open(fileobj=cast(IO[bytes], source), mode="r:") as tar:
            for member in tar:
                count += 1
                total_bytes += member.size
                if count > max_members:
                    raise _refusal(source, member, f"is more than the {max_members} members that are allowed")
                # Before the next header is read: a negative size would send tarfile backwards, and a compression bomb
                # would be unpacked on the way there.
                if member.size < 0 or total_bytes > max_bytes:
                    came = f"has {member.size} bytes, {total_bytes} with those before it"
                    raise _refusal(source, member, f"{came}; at most {max_bytes} are allowed")
                path = _checked_path(source, member)
                if path in members:
                    raise _refusal(source, member, "occurs twice")
                if path is not None:
                    members[path] = member
    except _PARSE_ERRORS as error:
        if count == 0 and head[257:262] != b"ustar":
            raise ModelFormatError(
                f"{source.archive}: expected a PaddleX inference model as .tar, .tar.gz, .tar.bz2 or .tar.xz, got a "
                f"file of {source.size_bytes} bytes that is no tar and starts with {head[:16]!r}."
            ) from error
        raise source.damaged(error) from error
    _check_end(source)
    for path, member in members.items():
        for parent in path.parents:
            if parent in members and not members[parent].isdir():
                raise _refusal(source, member, f"lies below {str(parent)!r}, which is a file")
    return members


def _check_end(source: _Source) -> None:
    """Check that the listing ended at the end mark; tarfile also stops, silently, at a truncated or broken header."""
    if source.last_read != bytes(tarfile.BLOCKSIZE):
        raise source.damaged(f"no valid header at byte {source.tell() - len(source.last_read)}")
    # The checksum of a compressed stream is verified only when the stream is read to its end.
    for _ in range(MAX_TRAILER_BYTES // MAX_READ_BYTES):
        if not source.read(MAX_READ_BYTES):
            return
    raise source.damaged(f"more than {MAX_TRAILER_BYTES} bytes after its end mark")


def _checked_path(source: _Source, member: tarfile.TarInfo) -> PurePosixPath | None:
    """Return a member's path relative to the archive's root; None if the member is ignored."""
    parts = [part for part in member.name.split("/") if part not in ("", ".")]
    if not member.name.isprintable():
        raise _refusal(source, member, "has a name with control or other unprintable characters")
    if member.name.startswith("/"):
        raise _refusal(source, member, "has an absolute path")
    if ".." in parts:
        raise _refusal(source, member, "has '..' in its path")
    if any(part.startswith("._") or part == "__MACOSX" for part in parts):
        return None
    kinds = {
        "a symbolic link": member.issym(),
        "a hard link": member.islnk(),
        "a device": member.ischr() or member.isblk(),
        "a FIFO": member.isfifo(),
        "a sparse file": member.issparse(),
        f"of the unknown type {member.type!r}": not (member.isfile() or member.isdir()),
        "a file without a name": member.isfile() and not parts,
    }
    for kind, applies in kinds.items():
        if applies:
            raise _refusal(source, member, f"is {kind}")
    return PurePosixPath(*parts)


def _refusal(source: _Source, member: tarfile.TarInfo, why: str) -> ModelFormatError:
    return ModelFormatError(
        f"{source.archive}: expected plain files and folders inside one folder, but member "
        f"{member.name[:NAME_SHOWN_CHARACTERS]!r} {why}; nothing was unpacked. Get the archive from its official "
        "source, or pack the model folder again with tar."
    )


def _find_model(archive: Path, members: _Members) -> PurePosixPath:
    """Return the one folder with an `inference.yml`, relative to the archive's root."""
    found = [path.parent for path, member in members.items() if path.name == INFERENCE_YML and member.isfile()]
    if len(found) == 1:
        return found[0]
    names = [str(path)[:NAME_SHOWN_CHARACTERS] for path in (found or members)]
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    listed = (", ".join(names[:NAMES_SHOWN]) or "nothing") + more
    if found:
        raise ModelFormatError(
            f"{archive}: expected one folder with {INFERENCE_YML}, got {len(found)}: {listed}; unpack it and pass the "
            f"folder of one model."
        )
    raise ModelFormatError(
        f"{archive}: expected a PaddleX inference model with {INFERENCE_YML}, got an archive with: {listed}; export "
        f"the model with PaddleX, or use the official inference model (not the pretrained one)."
    )


def _replace(into: Path, source: _Source, members: _Members, max_bytes: int) -> None:
    """Write the members to a temporary folder and replace `into` with it."""
    if into.exists() and not into.is_dir():
        raise NotADirectoryError(f"{into} exists and is not a folder")
    with staged_folder(into) as staging:
        _write_members(staging, source, members, max_bytes)


def _write_members(folder: Path, source: _Source, members: _Members, max_bytes: int) -> None:
    written_bytes = 0
    for path, member in members.items():
        target = folder / path
        (target if member.isdir() else target.parent).mkdir(parents=True, exist_ok=True)
        if member.isdir():
            continue
        source.seek(member.offset_data)
        with target.open("xb") as file:
            while missing := member.size - file.tell():
                chunk = source.read(min(missing, MAX_READ_BYTES))
                written_bytes += len(chunk)
                if not chunk:
                    raise source.damaged(f"no more bytes of {member.name!r}")
                if written_bytes > max_bytes:
                    raise _refusal(source, member, f"passes the limit of {max_bytes} bytes in all while being written")
                file.write(chunk)
        target.chmod(FILE_MODE)
    for entry in (folder, *folder.rglob("*")):
        if entry.is_dir():
            entry.chmod(FOLDER_MODE)
