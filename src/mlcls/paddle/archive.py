"""Take a PaddleX inference model out of an archive, trusting nothing in it.

Only the files of a model are written, under their own fixed names, so no path of the archive is ever used.
"""

from __future__ import annotations

import importlib
import shutil
import tarfile
from pathlib import Path, PurePosixPath
from typing import IO, Final, cast

from mlcls.base.text import clip, one_line
from mlcls.errors import ModelFormatError
from mlcls.paddle.inference_yml import INFERENCE_YML
from mlcls.paddle.model import GRAPH_NAMES, PARAMETERS_NAME

MAX_MEMBERS: Final = 1000
MAX_UNPACKED_BYTES: Final = 4 * 1024**3
# Most bytes of all headers and of the padding at the end: tarfile reads as many as a header claims to have.
MAX_HEADER_BYTES: Final = 8 * 1024**2

_MODEL_FILES: Final = (INFERENCE_YML, PARAMETERS_NAME, *GRAPH_NAMES)
# First bytes of a compressed file, and the standard module that opens it.
_COMPRESSIONS: Final = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\xfd7zXZ\x00": "lzma"}
_LISTED_CHARACTERS: Final = 500

_Members = dict[PurePosixPath, tarfile.TarInfo]


class _Bounded:
    """The decompressed bytes of an archive, of which at most `left` more are read."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.left, self.last_read = MAX_HEADER_BYTES, b""
        self.seek, self.tell, self._stream = stream.seek, stream.tell, stream

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self.left:
            raise tarfile.ReadError(f"headers of more than {MAX_HEADER_BYTES} bytes")
        self.left -= size
        self.last_read = self._stream.read(size)
        return self.last_read


def extract_model(archive: Path, into: Path) -> None:
    """Take the files of a PaddleX inference model out of a tar, plain or compressed, into a new folder.

    All members are checked before anything is written. What macOS adds is ignored: members named `._*` or below
    `__MACOSX`, and all of a pax header but a member's name and size.

    Raises:
        ModelFormatError: The archive cannot be read, is damaged, does not hold exactly one `inference.yml`, exceeds a
            limit, or has a member that is a link, a device, a FIFO or sparse, or whose name is absolute, contains `..`
            or unprintable characters, or occurs twice; or `into` cannot be written.
    """
    head, size = b"", 0
    try:
        with archive.open("rb") as file:
            head, size = file.peek(16)[:16], archive.stat().st_size
            module = next((name for magic, name in _COMPRESSIONS.items() if head.startswith(magic)), None)
            source = _Bounded(importlib.import_module(module).open(file) if module else file)
            with tarfile.open(fileobj=cast(IO[bytes], source), mode="r:") as tar:
                members = _list_members(archive, tar)
                _check_end(source)
                folder = _find_model(archive, members)
                source.left = MAX_UNPACKED_BYTES
                into.mkdir(parents=True)
                for path, member in members.items():
                    content = tar.extractfile(member) if path.parent == folder else None
                    if content is not None and path.name in _MODEL_FILES:
                        with (into / path.name).open("xb") as target:
                            shutil.copyfileobj(content, target)
    except ModelFormatError:
        raise
    except Exception as error:  # a damaged archive can raise anything
        if isinstance(error, OSError) and error.errno is not None:  # not one that a decompressor raises by itself
            raise ModelFormatError(
                f"{archive}: expected to unpack it into {into}, got: {error}; check both places and the free space."
            ) from error
        raise ModelFormatError(
            f"{archive}: expected a PaddleX inference model as .tar, .tar.gz, .tar.bz2 or .tar.xz, got a file of "
            f"{size} bytes that starts with {head!r} and is no tar, or a truncated or damaged one "
            f"({one_line(error) or type(error).__name__}); download or copy it again."
        ) from error


def _list_members(archive: Path, tar: tarfile.TarFile) -> _Members:
    """Read and check all headers; return the members that are not ignored, by their paths."""
    members: _Members = {}
    total_bytes = 0
    for count, member in enumerate(tar, 1):
        path = PurePosixPath(member.name)
        total_bytes += member.size
        is_ignored = any(part.startswith("._") or part == "__MACOSX" for part in path.parts)
        # Checked before the next header is read: a negative size would send tarfile backwards, and a compression bomb
        # would be unpacked on the way there.
        defects = {
            f"is more than the {MAX_MEMBERS} members that are allowed": count > MAX_MEMBERS,
            f"has {member.size} bytes, {total_bytes} with those before it; at most {MAX_UNPACKED_BYTES} are allowed": (
                member.size < 0 or total_bytes > MAX_UNPACKED_BYTES
            ),
            "has unprintable characters in its name": not member.name.isprintable(),
            "has an absolute path": path.is_absolute(),
            "has '..' in its path": ".." in path.parts,
            "is a link": not is_ignored and (member.issym() or member.islnk()),
            "is a device or of another special type": not is_ignored and not (member.isfile() or member.isdir()),
            "is a sparse file": not is_ignored and member.issparse(),
            "occurs twice": path in members,
        }
        for defect, applies in defects.items():
            if applies:
                raise ModelFormatError(
                    f"{archive}: expected plain files and folders inside one folder, but member "
                    f"{clip(member.name, 200)} {defect}; nothing was unpacked. Get the archive from its official "
                    f"source, or pack the model folder again with tar."
                )
        if not is_ignored:
            members[path] = member
    return members


def _check_end(source: _Bounded) -> None:
    """Check that the headers ended at the end mark: tarfile also stops, silently, at a truncated or broken one."""
    if source.last_read != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"no valid header at byte {source.tell() - len(source.last_read)}")
    while source.read(min(source.left, 1 << 16) or 1):  # the checksum of a compression comes at its end
        pass


def _find_model(archive: Path, members: _Members) -> PurePosixPath:
    """Return the one folder with an `inference.yml`, relative to the archive's root."""
    found = [path.parent for path, member in members.items() if path.name == INFERENCE_YML and member.isfile()]
    if len(found) == 1:
        return found[0]
    listed = ", ".join(map(str, found or members)) or "nothing"
    listed = listed if len(listed) <= _LISTED_CHARACTERS else listed[:_LISTED_CHARACTERS] + "..."
    raise ModelFormatError(
        f"{archive}: expected a PaddleX inference model, one folder with {INFERENCE_YML}, got {len(found)} folders "
        f"in an archive with: {listed}; unpack it and pass the folder of one model, export the model with PaddleX, or "
        f"use the official inference model (not the pretrained one)."
    )
