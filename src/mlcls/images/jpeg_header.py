"""What stands before the picture data of a JPEG file: ITU-T T.81, section B.1.1."""

from __future__ import annotations

import dataclasses
import re
import struct
from typing import Final

from mlcls.images.faults import broken, too_complex

_MAX_SEGMENTS: Final = 4096  # an ICC profile and extended XMP may each take 255
# Progressive files have about ten. Each further one costs as much time as a picture, and may be a few bytes long.
_MAX_SCANS: Final = 100
_MARKER: Final = re.compile(rb"\xff([^\0\xff])")
_END: Final = b"\xff\xd9"
_SCAN: Final = b"\xff\xda"


@dataclasses.dataclass(frozen=True)
class JpegHeader:
    """The segments before the first scan.

    Attributes:
        height: Rows, before any EXIF orientation is applied.
        width: Columns, before any EXIF orientation is applied.
        channels: Components.
        app1: The APP1 segments, EXIF among them, with their markers, in order.
        scan_offset: Where the first scan begins, in bytes.
        single_scan: Sequential with all components in one scan, so the picture is whole if that scan is.
    """

    height: int
    width: int
    channels: int
    app1: bytes
    scan_offset: int
    single_scan: bool


def read_jpeg_header(data: bytes) -> JpegHeader:
    """Walk the segments up to the first scan, as libjpeg does.

    Raises:
        ImageError: There is no scan, or there are too many segments or scans.
        struct.error: The data ends within a segment.
        IndexError: The same.
    """
    height = width = channels = frame = 0
    app1: list[bytes] = []
    at = 2
    for _ in range(_MAX_SEGMENTS):
        found = _MARKER.search(data, at)
        if found is None or found[1] == b"\xd9":
            raise broken("JPEG", data, "it ends before its picture data", "truncated")
        marker, at = found[1][0], found.end()
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:  # markers without a length
            continue
        (length,) = struct.unpack_from(">H", data, at)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            frame = marker
            height, width, channels = struct.unpack_from(">HHB", data, at + 3)
        elif marker == 0xE1:
            app1.append(b"\xff\xe1" + data[at : at + length])
        elif marker == 0xDA:
            single_scan = frame in (0xC0, 0xC1) and data[at + 2] == channels
            if not single_scan:
                _check_scans(data, at)
            return JpegHeader(height, width, channels, b"".join(app1), at, single_scan)
        at += max(length, 2)
    raise too_complex("JPEG", "segments before its picture data", _MAX_SEGMENTS)


def _check_scans(data: bytes, at: int) -> None:
    """Stuffing keeps the two bytes of a marker out of picture data."""
    end = data.find(_END, at)
    if 1 + data.count(_SCAN, at, end if end >= 0 else len(data)) > _MAX_SCANS:
        raise too_complex("JPEG", "scans", _MAX_SCANS)
