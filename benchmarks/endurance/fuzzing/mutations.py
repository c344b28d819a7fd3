"""Change files at random and by what their formats suggest; the same generator state gives the same change."""

from __future__ import annotations

import random
import re
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Final

_NUMBERS: Final = (0, 1, 2, 7, 8, 127, 128, 255, 256, 4095, 32767, 32768, 65535, 65536, 1 << 24, 1 << 31, (1 << 32) - 1)
# How often the first bytes are restored; otherwise decoders would refuse most files at first sight.
_KEEP_START: Final = 0.7
_START_BYTES: Final = 12
_SEGMENT: Final = re.compile(rb"\xff[\xc0-\xcf\xda-\xef\xfe]")
_WORDS: Final = (
    b"\xff\xd8\xff", b"\xff\xd9", b"\xff\xda", b"\xff\xc4", b"\xff\xdb", b"\xff\xc2", b"\xff\xdd\0\4\0\1",
    b"\xff\xe1\0\x10Exif\0\0",
    b"\x89PNG\r\n\x1a\n", b"IHDR", b"IDAT", b"IEND", b"PLTE", b"tRNS", b"iCCP", b"acTL", b"fcTL", b"fdAT", b"eXIf",
    b"RIFF", b"WEBP", b"VP8 ", b"VP8L", b"VP8X", b"ANIM", b"ANMF", b"ALPH", b"BM", b"II*\0", b"MM\0*", b"II+\0",
    b"GIF89a", b"\x21\xf9\x04", b"\x21\xff\x0b", b"\x2c\0\0\0\0", b"ftypavif", b"meta", b"mdat", b"ipma", b"av1C",
    b"\0\0\0\0\0\0\0\0", b"\xff\xff\xff\xff\xff\xff\xff\xff", b"\x80\0\0\0",
)  # fmt: skip


def mutate(chance: random.Random, seeds: Mapping[str, bytes]) -> tuple[str, bytes]:
    """Return one changed file.

    Args:
        chance: Source of randomness.
        seeds: Good files by name.

    Returns:
        A description of the change, and the bytes.
    """
    name = chance.choice(sorted(seeds))
    data = start = seeds[name]
    done = []
    for _time in range(chance.choice((1, 1, 1, 2, 3, 6))):
        kind = chance.choice(sorted(MUTATIONS))
        data = MUTATIONS[kind](chance, data, seeds)
        done.append(kind)
    if chance.random() < _KEEP_START:
        data = start[:_START_BYTES] + data[_START_BYTES:]
    return f"{name}: {', '.join(done)}", data


def change_bytes(chance: random.Random, data: bytes, _: Mapping[str, bytes]) -> bytes:
    """Flip a bit of a few bytes, anywhere or near the start, or set them to another value."""
    changed = bytearray(data)
    for _time in range(chance.choice((1, 1, 2, 4, 16, 64))):
        if changed:
            at = _position(chance, changed)
            flipped = changed[at] ^ 1 << chance.randrange(8)
            changed[at] = chance.choice((flipped, flipped, flipped, 0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
    return bytes(changed)


def change_part(chance: random.Random, data: bytes, _: Mapping[str, bytes]) -> bytes:
    """Cut off the start or the end, or remove, repeat or overwrite bytes in the middle."""
    begin, size = chance.randint(0, len(data)), chance.choice((1, 2, 4, 16, 100, 1000))
    end = min(len(data), begin + size)
    part = data[begin:end]
    filling = (b"\0" * len(part), b"\xff" * len(part), chance.randbytes(len(part)))
    changes = (
        data[: max(0, len(data) - size)],
        data[:begin],
        data[size:],
        data[begin:],
        data[:begin] + data[end:],
        data[:end] + part * chance.choice((1, 2, 20)) + data[end:],
        data[:begin] + chance.choice(filling) + data[end:],
    )
    return chance.choice(changes)


def splice(chance: random.Random, data: bytes, seeds: Mapping[str, bytes]) -> bytes:
    """Join the start of one file and the end of another; half the time, of the same format."""
    names = sorted(seeds)
    alike = [name for name in names if seeds[name][:4] == data[:4]] if chance.random() < 0.5 else []
    other = seeds[chance.choice(alike or names)]
    return data[: chance.randint(0, len(data))] + other[chance.randint(0, len(other)) :]


def insert_word(chance: random.Random, data: bytes, _: Mapping[str, bytes]) -> bytes:
    """Insert a marker or a chunk's name, or overwrite bytes with it."""
    word = chance.choice(_WORDS)
    at = _position(chance, data) if data else 0
    return data[:at] + word + data[at + chance.choice((0, len(word))) :]


def lie_about_number(chance: random.Random, data: bytes, _: Mapping[str, bytes]) -> bytes:
    """Change a number of 2, 4 or 8 bytes near the start: a size, a length, an offset, a count."""
    size = chance.choice((2, 2, 4, 4, 8))
    if len(data) < size:
        return data
    at = chance.randrange(min(len(data) - size + 1, chance.choice((40, 200, len(data)))))
    value = (chance.choice(_NUMBERS) + chance.choice((-1, 0, 0, 1))) % (1 << 8 * size)
    return data[:at] + value.to_bytes(size, chance.choice(("little", "big"))) + data[at + size :]


def lie_about_field(chance: random.Random, data: bytes, _: Mapping[str, bytes]) -> bytes:
    """Change the picture's size, or the length of a segment, chunk, block or entry, where its format stores it."""
    fields = [(at, form) for at, form in _find_fields(data) if 0 <= at <= len(data) - struct.calcsize(form)]
    if not fields:
        return lie_about_number(chance, data, {})
    at, form = chance.choice(fields)
    (value,) = struct.unpack_from(form, data, at)
    near = (value - 1, value + 1, value * 2, value + 1000, chance.getrandbits(16), chance.choice(_NUMBERS))
    changed = bytearray(data)
    struct.pack_into(form, changed, at, chance.choice(near) % (1 << 8 * struct.calcsize(form)))
    return bytes(changed)


def mend_checksums(chance: random.Random, data: bytes, _: Mapping[str, bytes]) -> bytes:
    """Change a byte of a PNG file's chunk and mend all checksums; else decoders look no further."""
    if not data.startswith(b"\x89PNG"):
        return change_bytes(chance, data, {})
    changed = bytearray(data)
    chunks = list(_png_chunks(data))
    at, length = chance.choice(chunks) if chunks else (0, 0)
    if length:
        changed[at + 8 + chance.randrange(length)] = chance.randrange(256)
    for at, length in chunks:
        struct.pack_into(">I", changed, at + 8 + length, zlib.crc32(bytes(changed[at + 4 : at + 8 + length])))
    return bytes(changed)


def _position(chance: random.Random, data: bytes | bytearray) -> int:
    return chance.randrange(min(len(data), chance.choice((32, 200, 800, len(data)))))


def _find_fields(data: bytes) -> list[tuple[int, str]]:
    """Return position and format of the sizes and lengths in a file, as far as its format is known."""
    if data.startswith(b"\x89PNG"):
        return [(16, ">I"), (20, ">I"), *((at, ">I") for at, _ in _png_chunks(data))]
    if data.startswith(b"\xff\xd8"):
        frames = [match.end() + 3 + at for match in re.finditer(rb"\xff[\xc0-\xc2]", data) for at in (0, 2)]
        return [(at, ">H") for at in (*frames, *(match.start() + 2 for match in _SEGMENT.finditer(data)))]
    if data.startswith(b"BM"):
        return [(at, "<I") for at in (2, 10, 14, 18, 22, 30, 34, 46)]
    if data.startswith(b"GIF"):
        block = data.find(b"\x2c\0\0\0\0", 13)
        return [(at, "<H") for at in (6, 8, block + 5, block + 7)]
    if data.startswith(b"RIFF"):
        sizes = [(26, "<H"), (28, "<H")] if data[12:16] == b"VP8 " else [(21, "<I"), (23, "<I"), (26, "<I")]
        return [*sizes, *((at, "<I") for at in _riff_lengths(data))]
    if data[:2] in (b"II", b"MM"):
        order = "<" if data[:2] == b"II" else ">"
        return [(at, order + form) for at in _tiff_fields(data) for form in "HI"]
    boxes = [match.start() - 4 for match in re.finditer(rb"meta|mdat|iloc|iprp|ispe|ipma|av1C|iinf", data)]
    extents = [match.end() + at for match in re.finditer(rb"ispe", data) for at in (4, 8)]
    return [(at, ">I") for at in (*boxes, *extents)] if data[4:8] == b"ftyp" else []


def _png_chunks(data: bytes) -> Sequence[tuple[int, int]]:
    """Return the start and the length of each complete chunk."""
    chunks, at = [], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        if at + 12 + length > len(data):
            break
        chunks.append((at, length))
        at += 12 + length
    return chunks


def _riff_lengths(data: bytes) -> list[int]:
    found, at = [4], 12
    while at + 8 <= len(data):
        found.append(at + 4)
        (length,) = struct.unpack_from("<I", data, at + 4)
        at += 8 + length + length % 2
    return found


def _tiff_fields(data: bytes) -> list[int]:
    """Return the positions of type, count and value of the entries of the first directory."""
    order = "<" if data[:2] == b"II" else ">"
    if len(data) < 16:
        return []
    (offset,) = struct.unpack_from(order + "I", data, 4)
    return [offset, *(offset + 2 + 12 * entry + field for entry in range(16) for field in (0, 2, 4, 8))]


# By a description of the change.
MUTATIONS: Final[Mapping[str, Callable[[random.Random, bytes, Mapping[str, bytes]], bytes]]] = {
    "bytes": change_bytes,
    "part": change_part,
    "splice": splice,
    "word": insert_word,
    "number": lie_about_number,
    "field": lie_about_field,
    "chunk": mend_checksums,
}
