"""The first directory of a TIFF file: TIFF 6.0, section 2, and BigTIFF."""

from __future__ import annotations

import dataclasses
import struct
from typing import Final

from mlcls.images.faults import broken

_WIDTH, _HEIGHT, _COMPRESSION, _TILE_WIDTH, _TILE_HEIGHT = 256, 257, 259, 322, 323
_LARGE_TILE: Final = 4096


@dataclasses.dataclass(frozen=True)
class TiffHeader:
    """What the first directory says.

    Attributes:
        height: Rows, before any orientation is applied.
        width: Columns, before any orientation is applied.
        compression: The number of the compression scheme.
        frames: Directories, which are pages; counted no further than asked for.
    """

    height: int
    width: int
    compression: int
    frames: int


@dataclasses.dataclass(frozen=True)
class _Layout:
    """How directories are written: byte order, and the wider fields of BigTIFF."""

    order: str
    offset_at: int
    offset: str
    count: str
    entry_bytes: int
    value_at: int


def read_tiff_header(data: bytes, most_frames: int) -> TiffHeader:
    """Read the first directory and follows the offsets of the others.

    Args:
        data: The whole file.
        most_frames: Where counting ends.

    Raises:
        ImageError: The first directory lies beyond the end, or says that tiles are larger than the picture.
        struct.error: The header is cut off.
    """
    order = "<" if data[:2] == b"II" else ">"
    layout = (
        _Layout(order, 8, order + "Q", order + "Q", 20, 12)
        if b"+" in data[2:4]
        else _Layout(order, 4, order + "I", order + "H", 12, 8)
    )
    (offset,) = struct.unpack_from(layout.offset, data, layout.offset_at)
    first, count = _find_entries(data, offset, layout)
    if first + count * layout.entry_bytes > len(data) or count > 0xFFFF:
        why = f"its directory of {count} entries at byte {offset} lies beyond the end"
        raise broken("TIFF", data, why, "truncated")
    values = dict.fromkeys((_WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT), 0) | {_COMPRESSION: 1}
    for at in range(first, first + count * layout.entry_bytes, layout.entry_bytes):
        tag, kind = struct.unpack_from(order + "HH", data, at)
        if tag in values:
            form = order + {3: "H", 4: "I", 16: "Q"}.get(kind, "I")
            (values[tag],) = struct.unpack_from(form, data, at + layout.value_at)
    width, height = values[_WIDTH], values[_HEIGHT]
    tile_height, tile_width = values[_TILE_HEIGHT], values[_TILE_WIDTH]
    # cv2 allocates a whole tile
    if tile_height > max(height, _LARGE_TILE) or tile_width > max(width, _LARGE_TILE):
        raise broken("TIFF", data, f"its tiles of {tile_height} x {tile_width} are larger than the picture")
    return TiffHeader(height, width, values[_COMPRESSION], _count_directories(data, offset, layout, most_frames))


def _find_entries(data: bytes, offset: int, layout: _Layout) -> tuple[int, int]:
    """Return where the entries of the directory at an offset begin, and their number."""
    (count,) = struct.unpack_from(layout.count, data, min(offset, len(data)))
    return offset + struct.calcsize(layout.count), count


def _count_directories(data: bytes, offset: int, layout: _Layout, most: int) -> int:
    """Count the pages; a chain that is broken or circular ends there, since the first page, which is read, is whole."""
    seen: set[int] = set()
    while offset and offset not in seen and len(seen) < most:
        seen.add(offset)
        try:
            first, count = _find_entries(data, offset, layout)
            at = first + count * layout.entry_bytes
            (offset,) = struct.unpack_from(layout.offset, data, min(at, len(data)))
        except struct.error:
            break
    return len(seen)
