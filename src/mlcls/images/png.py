"""The chunks of a PNG file: PNG specification, third edition, section 5.3."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from mlcls.images.faults import broken, too_complex
from mlcls.images.formats import PNG_SIGNATURE

_ANIMATION_CHUNKS: Final = (b"acTL", b"fcTL", b"fdAT")
_FRAME_CHUNK: Final = b"fcTL"
# A chunk of picture data usually has 8 KiB or more.
_MAX_CHUNKS: Final = 65_536


def count_png_frames(data: bytes) -> tuple[int, bool]:
    """Return the number of frames, and whether there are chunks of an animation.

    Raises:
        ImageError: A chunk says that it is longer than the file, the end or the picture is missing, or there are more
            than 65,536 chunks.
    """
    kinds = [kind for kind, _, _ in _list_png_chunks(data)]
    if b"IDAT" not in kinds:  # cv2 4.11 would read on past the end
        raise broken("PNG", data, "it has no IDAT chunk")
    return max(1, kinds.count(_FRAME_CHUNK)), not set(kinds).isdisjoint(_ANIMATION_CHUNKS)


def strip_png_animation(data: bytes) -> bytes:
    """Drop the animation chunks of a PNG file, which leaves the still picture that it shows to any other reader.

    cv2 4.11 writes out of bounds for a frame larger than the picture; earlier versions, PaddleX's among them, do not
    know animations. Bytes after IEND are dropped too.
    """
    return PNG_SIGNATURE + b"".join(
        data[start:end] for kind, start, end in _list_png_chunks(data) if kind not in _ANIMATION_CHUNKS
    )


def _list_png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Give kind, start and end, in bytes, of each chunk."""
    at = len(PNG_SIGNATURE)
    for _ in range(_MAX_CHUNKS):
        if at + 12 > len(data):
            raise broken("PNG", data, "it has no IEND chunk", "truncated")
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            why = f"its chunk {kind!r} says {length} bytes, only {len(data) - at - 12} are there"
            raise broken("PNG", data, why, "truncated")
        yield kind, at, end
        if kind == b"IEND":
            return
        at = end
    raise too_complex("PNG", "chunks", _MAX_CHUNKS)
