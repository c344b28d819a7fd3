"""The pages of a TIFF file, each as a file of its own: the server reads the first page of what it gets.

A page is copied, not decoded, so that it has the pixels that the server makes of it. TIFF 6.0, section 2; BigTIFF has
larger fields.
"""

from __future__ import annotations

import os
import struct
from typing import Any, BinaryIO, Final

# First bytes of TIFF and BigTIFF, little-endian and big-endian.
TIFF_SIGNATURES: Final = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

# Bytes of a value by its type, and the forms of those that may be an offset: TIFF 6.0, page 15, and BigTIFF's LONG8.
_BYTES: Final = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
_INTEGERS: Final = {3: "H", 4: "I", 16: "Q"}
_LONG, _LONG8 = 4, 16
# Offsets and sizes of the data of a page, which is in strips or in tiles.
_STRIPS: Final = (273, 279)
_TILES: Final = (324, 325)
# Pointers to other directories (thumbnails, EXIF, GPS), which are not copied.
_POINTERS: Final = (330, 34665, 34853, 40965)


class TiffDocument:
    """An open TIFF file. Any other file, and one with a broken first directory, is one page: the whole file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._length = file.seek(0, os.SEEK_END)
        signature = self._bytes(0, 4)
        self._order = ">" if signature[:2] == b"MM" else "<"
        # forms of an offset and of a count of entries; bytes of an entry, and of the value in it
        self._forms = ("Q", "Q", 20, 8) if b"+" in signature else ("I", "H", 12, 4)
        self._directories = self._find_directories() if signature in TIFF_SIGNATURES else []
        self.page_count = max(1, len(self._directories))

    def read(self, page_index: int) -> bytes:
        """Return a page as a TIFF file; the file itself if it has one page."""
        if self.page_count == 1:
            return self._bytes(0, self._length)
        directory = self._directories[page_index]
        try:
            return self._copy_page(directory)
        except (struct.error, KeyError, ValueError):  # an unusual page: the whole file, with this page as the first
            pointer = struct.pack(self._order + self._forms[0], directory)
            at = self._pointer_at()
            return self._bytes(0, at) + pointer + self._bytes(at + len(pointer), self._length)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _pointer_at(self) -> int:
        """Return where the offset of the first directory is."""
        return struct.calcsize(self._forms[0])

    def _bytes(self, at: int, length: int) -> bytes:
        """Return bytes of the file, fewer where it ends."""
        self._file.seek(min(at, self._length))
        return self._file.read(min(length, self._length))

    def _unpack(self, form: str, at: int) -> tuple[Any, ...]:
        return struct.unpack(self._order + form, self._bytes(at, struct.calcsize(self._order + form)))

    def _find_directories(self) -> list[int]:
        """Follow the chain of directories to its end, or to where it breaks off or becomes a circle."""
        offset_form, count_form, entry_bytes, _ = self._forms
        found: dict[int, None] = {}
        try:
            (offset,) = self._unpack(offset_form, self._pointer_at())
            while offset and offset not in found:
                (count,) = self._unpack(count_form, offset)
                found[offset] = None
                (offset,) = self._unpack(offset_form, offset + struct.calcsize("=" + count_form) + count * entry_bytes)
        except struct.error:
            pass
        return list(found)

    def _copy_page(self, directory: int) -> bytes:
        """Return a TIFF file of the values in a directory and of the data that they point to.

        Raises:
            struct.error, KeyError, ValueError: They do not say where the data is, or are more than the file has.
        """
        offset_form, count_form, entry_bytes, value_bytes = self._forms
        (count,) = self._unpack(count_form, directory)
        first = directory + struct.calcsize("=" + count_form)
        values: dict[int, tuple[int, int, bytes]] = {}  # by tag: type, number, content
        left = self._length  # parts that overlap would take any amount of memory
        for entry in range(first, first + count * entry_bytes, entry_bytes):
            tag, kind, number = self._unpack("HH" + offset_form, entry)
            size = number * _BYTES[kind]
            at = entry + entry_bytes - value_bytes
            if size > value_bytes:
                (at,) = self._unpack(offset_form, at)
            left -= size
            if left < 0:
                raise ValueError
            if tag not in _POINTERS:
                values[tag] = kind, number, self._bytes(at, size)
        offsets_tag, sizes_tag = _STRIPS if _STRIPS[0] in values else _TILES
        offsets, sizes = (self._numbers(*values[tag]) for tag in (offsets_tag, sizes_tag))
        if len(offsets) != len(sizes) or sum(sizes) > self._length:
            raise ValueError
        data = [self._bytes(offset, size) for offset, size in zip(offsets, sizes, strict=True)]
        if [*map(len, data)] != [*sizes]:  # cut off
            raise ValueError
        return self._write(values, offsets_tag, data)

    def _numbers(self, kind: int, number: int, content: bytes) -> tuple[int, ...]:
        return struct.unpack(f"{self._order}{number}{_INTEGERS[kind]}", content)

    def _write(self, values: dict[int, tuple[int, int, bytes]], offsets_tag: int, data: list[bytes]) -> bytes:
        """Return a TIFF file, not a BigTIFF one, of these values and this data."""
        for tag, (kind, number, content) in values.items():
            if kind == _LONG8:
                numbers = self._numbers(kind, number, content)
                values[tag] = _LONG, number, struct.pack(f"{self._order}{number}I", *numbers)
        values[offsets_tag] = _LONG, len(data), bytes(4 * len(data))
        start = 8 + 2 + 12 * len(values) + 4
        behind = start + sum(len(content) for _, _, content in values.values() if len(content) > 4)
        offsets = []
        for part in data:
            offsets.append(behind)
            behind += len(part)
        values[offsets_tag] = _LONG, len(data), struct.pack(f"{self._order}{len(data)}I", *offsets)
        head = (b"MM\0*" if self._order == ">" else b"II*\0") + struct.pack(self._order + "IH", 8, len(values))
        body = b""
        for tag, (kind, number, content) in sorted(values.items()):
            field = content.ljust(4, b"\0")
            if len(content) > 4:
                field = struct.pack(self._order + "I", start + len(body))
                body += content
            head += struct.pack(self._order + "HHI", tag, kind, number) + field
        return b"".join((head, bytes(4), body, *data))
