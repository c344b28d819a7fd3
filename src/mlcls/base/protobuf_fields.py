"""Walk protobuf's wire format from field to field, without generated classes and without reading the fields' data."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import Final

VARINT: Final = 0
BYTES: Final = 2
# Size of the wire types of a fixed size: 64 and 32 bits.
_FIXED_BYTES: Final = {1: 8, 5: 4}


def read_fields(content: bytes | mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield the number, the wire type, and the start and end of the content of each field of a message.

    Raises:
        ValueError: These bytes are no message; the text says where.
    """
    position = start
    while position < end:
        key, position = read_varint(content, position, end)
        kind, first = key & 7, position
        if kind == VARINT:
            _, position = read_varint(content, position, end)
        elif kind == BYTES:
            length, first = read_varint(content, position, end)
            position = first + length
        else:
            position += _FIXED_BYTES.get(kind, 0)
        if position > end or key >> 3 == 0 or kind not in (VARINT, BYTES, *_FIXED_BYTES):
            raise ValueError(f"another kind of file, or a truncated or damaged one (at byte {first})")
        yield key >> 3, kind, first, position


def read_varint(content: bytes | mmap.mmap, position: int, end: int) -> tuple[int, int]:
    """Return a number and the position after it.

    Raises:
        ValueError: The bytes end before the number does, or it has more than 64 bits; the text says where.
    """
    value = shift = 0
    while position < end and shift < 64:
        byte = content[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise ValueError(f"another kind of file, or a truncated or damaged one (at byte {position})")
