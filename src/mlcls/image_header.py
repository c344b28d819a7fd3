"""What the first bytes of an image file say: its format and its size, without decoding a pixel.

cv2 trusts a file's header: 59 bytes of a broken PNG cost it up to 2 GB, 138 bytes of a TIFF with a huge tile 1 GB, and
167 bytes of an animated PNG crash cv2 4.11. So the header is read here first, in 2 to 7 microseconds. Own code, because
Pillow's `Image.open` takes up to 160, looks at neither PNG chunks nor TIFF tiles, cannot open all that cv2 can (float
TIFF), and decodes ICO while opening it, which is why ICO is refused. It serves for AVIF, which Pillow decodes anyway.
"""

from __future__ import annotations

import dataclasses
import io
import re
import struct
from collections.abc import Iterator
from typing import Final

from PIL import Image, UnidentifiedImageError

from mlcls.errors import ImageError, ImageReason

#: Formats that can be decoded, by the names used in messages.
FORMATS: Final = ("JPEG", "PNG", "WebP", "BMP", "TIFF", "GIF", "AVIF")

#: How every message begins: what was expected.
EXPECTED: Final = f"image: expected the bytes of one {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file"

PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_MAX_JPEG_SEGMENTS: Final = 4096  # an ICC profile and extended XMP may each take 255
_JPEG_MARKER: Final = re.compile(rb"\xff([^\0\xff])")
_ANIMATION_CHUNKS: Final = (b"acTL", b"fcTL", b"fdAT")

#: First bytes of each format that is known; those not in `FORMATS` are named when they are refused.
_MAGIC: Final = (
    (re.compile(rb"\xff\xd8\xff"), "JPEG"),
    (re.compile(re.escape(PNG_SIGNATURE)), "PNG"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "WebP"),
    (re.compile(rb"BM.{12}[\x0c-\x7c]\0\0\0", re.DOTALL), "BMP"),
    (re.compile(rb"II[*+]\0|MM\0[*+]"), "TIFF"),
    (re.compile(rb"GIF8[79]a"), "GIF"),
    (re.compile(rb"....ftyp(?:....){0,16}avi[fs]", re.DOTALL), "AVIF"),
    (re.compile(rb"....ftyp(?:....){0,16}(?:hei[cxms]|hev[cxms]|mif1|msf1)", re.DOTALL), "HEIC"),
    (re.compile(rb"....ftyp", re.DOTALL), "MP4 or QuickTime"),
    (re.compile(rb"%PDF-"), "PDF"),
    (re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:<[?!](?!doctype html).*)?<svg", re.DOTALL | re.IGNORECASE), "SVG"),
    (re.compile(rb"\0\0[\1\2]\0"), "ICO"),
    (re.compile(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"), "JPEG 2000"),
    (re.compile(rb"\0\0\0\x0cJXL |\xff\x0a"), "JPEG XL"),
    (re.compile(rb"8BPS"), "Photoshop"),
    (re.compile(rb"P[1-7Ff]\s"), "PNM"),
    (re.compile(rb"\x76\x2f\x31\x01"), "OpenEXR"),
)

#: What bytes that are no image often are, and what to do instead.
_LOOKS_LIKE: Final = (
    (re.compile(rb"(?:\xef\xbb\xbf)?\s*<[!?a-z]", re.IGNORECASE), "HTML or XML", "send the image itself, not a page"),
    (re.compile(rb"data:image/|/9j/|iVBORw0KGgo|UklGR|R0lGOD"), "base64 text", "decode the base64 text first"),
    (re.compile(rb"[\t\n\r\x20-\x7e]+\Z"), "text", "send the content of the file, not its name or address"),
    (re.compile(rb""), "unknown data", "send the content of one image file"),
)


@dataclasses.dataclass(frozen=True)
class ImageHeader:
    """Format and size of an encoded image.

    Attributes:
        format: One of `FORMATS`.
        height: Rows, before any EXIF orientation is applied.
        width: Columns, before any EXIF orientation is applied.
        upright: JPEG only: certain that no EXIF orientation turns the picture, whoever reads it.
        channels: JPEG only: its components; 0 for other formats.
        scan_offset: JPEG only: where the first scan begins, in bytes; 0 for other formats.
        single_scan: JPEG only: sequential with all components in one scan, so the picture is whole if that scan is.
        animated: PNG only: it has the chunks of an animation.
    """

    format: str
    height: int
    width: int
    upright: bool = False
    channels: int = 0
    scan_offset: int = 0
    single_scan: bool = False
    animated: bool = False


def sniff_format(data: bytes) -> str:
    """Names the format of a file by its first bytes.

    Args:
        data: The whole file, or at least its first 256 bytes.

    Returns:
        One of `FORMATS`.

    Raises:
        ImageError: No bytes, no image, or a format that cannot be decoded, which is named.
    """
    if not data:
        raise ImageError(f"{EXPECTED}, got 0 bytes; send the content of the file.", "empty")
    start = data[:256]
    name = next((name for magic, name in _MAGIC if magic.match(start)), None)
    if name is None:
        like, advice = next((like, advice) for pattern, like, advice in _LOOKS_LIKE if pattern.match(start))
        came = f"{like} ({len(data)} bytes that begin with {data[:16]!r})"
        raise ImageError(f"{EXPECTED}, got {came}; {advice}.", "unknown_format")
    if name not in FORMATS:
        text = f"{EXPECTED}, got {name} ({len(data)} bytes); convert it to JPEG or PNG."
        raise ImageError(text, "format_not_supported")
    return name


def read_image_header(data: bytes) -> ImageHeader:
    """Reads format and size of an encoded image without decoding it.

    Args:
        data: The whole file.

    Returns:
        The header; height and width are 1 or more.

    Raises:
        ImageError: No image, an unsupported format, or a file that is certainly truncated or corrupt.
    """
    name = sniff_format(data)
    try:
        header = _READERS[name](data)
    except (struct.error, IndexError):  # a field lies beyond the last byte
        raise broken(name, data, "its header is cut off", "truncated") from None
    if header.height < 1 or header.width < 1:
        raise broken(name, data, f"its header says height {header.height}, width {header.width}")
    return header


def broken(name: str, data: bytes, why: str, reason: ImageReason = "corrupt") -> ImageError:
    """The error for a file of a supported format whose content is not whole."""
    return ImageError(
        f"image: expected a whole {name} file, got {len(data)} bytes that are truncated or corrupt: {why}; "
        f"send the file again, or save it anew.",
        reason,
    )


def pillow_broken(name: str, data: bytes, error: Exception) -> ImageError:
    """The same for what Pillow raised, in its words unless they show an address in memory."""
    known = not isinstance(error, UnidentifiedImageError)
    reason: ImageReason = "truncated" if "truncated" in str(error) else "undecodable"
    return broken(name, data, f"Pillow says {error}" if known else "Pillow cannot read it", reason)


def _read_jpeg(data: bytes) -> ImageHeader:
    """Walks the segments up to the first scan, as libjpeg does: ITU-T T.81, section B.1.1."""
    height = width = channels = frame = 0
    upright = True
    at = 2
    for _ in range(_MAX_JPEG_SEGMENTS):
        found = _JPEG_MARKER.search(data, at)
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
            upright = upright and _is_upright(data[at + 2 : at + length])
        elif marker == 0xDA:
            single_scan = frame in (0xC0, 0xC1) and data[at + 2] == channels
            return ImageHeader("JPEG", height, width, upright, channels, at, single_scan)
        at += max(length, 2)
    raise broken("JPEG", data, f"it has more than {_MAX_JPEG_SEGMENTS} segments before its picture data")


def _is_upright(segment: bytes) -> bool:
    """Whether an APP1 segment certainly does not ask to turn the picture.

    cv2 reads any APP1 segment from its seventh byte on as a TIFF directory, nearly whatever stands there. So one that
    is neither XMP nor a plain directory, with at most one orientation, is left to cv2.
    """
    if segment.startswith(b"http://ns.adobe.com/"):
        return True
    tiff = segment[6:]
    if tiff[:4] not in (b"II*\0", b"MM\0*"):
        return False
    order = "<" if tiff[:2] == b"II" else ">"
    try:
        (offset,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, offset)
        tags = [struct.unpack_from(order + "HHIH", tiff, offset + 2 + 12 * index) for index in range(count)]
    except struct.error:
        return False
    return all(value == 1 for tag, _, _, value in tags if tag == 0x0112)


def strip_png_animation(data: bytes) -> bytes:
    """Drops the animation chunks of a PNG file, which leaves the still picture that it shows to any other reader.

    cv2 4.11 writes out of bounds for a frame larger than the picture; earlier versions, PaddleX's among them, do not
    know animations. Bytes after IEND are dropped too.
    """
    return PNG_SIGNATURE + b"".join(
        data[start:end] for kind, start, end in _list_png_chunks(data) if kind not in _ANIMATION_CHUNKS
    )


def _read_png(data: bytes) -> ImageHeader:
    if data[12:16] != b"IHDR":
        raise broken("PNG", data, f"its first chunk is {data[12:16]!r}, not IHDR")
    width, height = struct.unpack_from(">II", data, 16)
    kinds = {kind for kind, _, _ in _list_png_chunks(data)}
    if b"IDAT" not in kinds:  # cv2 4.11 would read on past the end
        raise broken("PNG", data, "it has no IDAT chunk")
    return ImageHeader("PNG", height, width, animated=not kinds.isdisjoint(_ANIMATION_CHUNKS))


def _list_png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Gives kind, start and end, in bytes, of each chunk: PNG specification, third edition, section 5.3."""
    at = len(PNG_SIGNATURE)
    kind = b""
    while kind != b"IEND":
        if at + 12 > len(data):
            raise broken("PNG", data, "it has no IEND chunk", "truncated")
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            why = f"its chunk {kind!r} says {length} bytes, only {len(data) - at - 12} are there"
            raise broken("PNG", data, why, "truncated")
        yield kind, at, end
        at = end


def _read_webp(data: bytes) -> ImageHeader:
    """Reads the first chunk: RFC 9649, sections 2.4 to 2.7."""
    size = 8 + struct.unpack_from("<I", data, 4)[0]
    if size > len(data):
        raise broken("WebP", data, f"its header says {size} bytes", "truncated")
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
        return ImageHeader("WebP", height, width)
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return ImageHeader("WebP", 1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF))
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return ImageHeader("WebP", height & 0x3FFF, width & 0x3FFF)
    raise broken("WebP", data, f"its first chunk is {kind!r}")


def _read_bmp(data: bytes) -> ImageHeader:
    """Reads BITMAPCOREHEADER (16-bit sizes) or BITMAPINFOHEADER (a negative height means from the top down)."""
    (size,) = struct.unpack_from("<I", data, 14)
    width, height = struct.unpack_from("<HH" if size == 12 else "<ii", data, 18)
    return ImageHeader("BMP", abs(height), width)


def _read_tiff(data: bytes) -> ImageHeader:
    """Reads the first directory: TIFF 6.0, section 2, and BigTIFF."""
    order = "<" if data[:2] == b"II" else ">"
    if b"+" in data[2:4]:
        offset_at, offset_format, count_format, entry_size, value_at = 8, "Q", "Q", 20, 12
    else:
        offset_at, offset_format, count_format, entry_size, value_at = 4, "I", "H", 12, 8
    (offset,) = struct.unpack_from(order + offset_format, data, offset_at)
    (count,) = struct.unpack_from(order + count_format, data, min(offset, len(data)))
    first = offset + struct.calcsize(count_format)
    if first + count * entry_size > len(data) or count > 0xFFFF:
        why = f"its directory of {count} entries at byte {offset} lies beyond the end"
        raise broken("TIFF", data, why, "truncated")
    sizes = {256: 0, 257: 0, 322: 0, 323: 0}
    for at in range(first, first + count * entry_size, entry_size):
        tag, kind = struct.unpack_from(order + "HH", data, at)
        if tag in sizes:
            (sizes[tag],) = struct.unpack_from(order + {3: "H", 4: "I", 16: "Q"}.get(kind, "I"), data, at + value_at)
    width, height, tile_width, tile_height = sizes.values()
    if tile_height > max(height, 4096) or tile_width > max(width, 4096):  # cv2 allocates a whole tile
        raise broken("TIFF", data, f"its tiles of {tile_height} x {tile_width} are larger than the picture")
    return ImageHeader("TIFF", height, width)


def _read_gif(data: bytes) -> ImageHeader:
    """Reads the logical screen; the first frame may be larger, so the decoder has to check its size again."""
    width, height = struct.unpack_from("<HH", data, 6)
    return ImageHeader("GIF", height, width)


def _read_avif(data: bytes) -> ImageHeader:
    try:
        with Image.open(io.BytesIO(data), formats=("AVIF",)) as image:
            return ImageHeader("AVIF", image.height, image.width)
    except Exception as error:  # Pillow's plugins raise nearly anything
        raise pillow_broken("AVIF", data, error) from None


_READERS: Final = {
    "JPEG": _read_jpeg,
    "PNG": _read_png,
    "WebP": _read_webp,
    "BMP": _read_bmp,
    "TIFF": _read_tiff,
    "GIF": _read_gif,
    "AVIF": _read_avif,
}
