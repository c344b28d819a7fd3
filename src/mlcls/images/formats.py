"""The format of a file by its first bytes, and the errors for files that are not whole."""

from __future__ import annotations

import re
from typing import Final, Literal, get_args

from mlcls.errors import ImageError

# Formats that can be decoded, by their names in messages.
Format = Literal["JPEG", "PNG", "WebP", "BMP", "TIFF", "GIF", "AVIF"]
FORMATS: Final[tuple[Format, ...]] = get_args(Format)

# Beginning of every message: what was expected.
EXPECTED: Final = f"image: expected the bytes of one {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file"

PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"

# First bytes of the known formats; the error for one that is not in `FORMATS` names it.
_MAGIC: Final = (
    (re.compile(rb"\xff\xd8\xff"), "JPEG"),
    (re.compile(re.escape(PNG_SIGNATURE)), "PNG"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "WebP"),
    (re.compile(rb"RIFF....(?:AVI |WAVE)", re.DOTALL), "AVI or WAV"),
    (re.compile(rb"BM.{12}[\x0c-\x7c]\0\0\0", re.DOTALL), "BMP"),
    (re.compile(rb"II[*]\0....CR|....ftypcrx|FUJIFILMCCD|IIU\0|II(?:RO|RS)|MMOR", re.DOTALL), "camera raw"),
    (re.compile(rb"II[*+]\0|MM\0[*+]"), "TIFF"),
    (re.compile(rb"GIF8[79]a"), "GIF"),
    (re.compile(rb"....ftyp(?:....){0,16}avi[fs]", re.DOTALL), "AVIF"),
    (re.compile(rb"....ftyp(?:....){0,16}(?:hei[cxms]|hev[cxms]|mif1|msf1)", re.DOTALL), "HEIC"),
    (re.compile(rb"....ftyp|\0...(?:moov|mdat|wide)", re.DOTALL), "MP4 or QuickTime"),
    (re.compile(rb"\x1a\x45\xdf\xa3"), "Matroska or WebM"),
    (re.compile(rb"\0\0\x01[\xb3\xba]|FLV\x01"), "MPEG or Flash video"),
    (re.compile(rb"%PDF-"), "PDF"),
    (re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:<[?!](?!doctype html).*)?<svg", re.DOTALL | re.IGNORECASE), "SVG"),
    (re.compile(rb"\0\0[\1\2]\0"), "ICO"),
    (re.compile(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"), "JPEG 2000"),
    (re.compile(rb"\0\0\0\x0cJXL |\xff\x0a"), "JPEG XL"),
    (re.compile(rb"8BPS"), "Photoshop"),
    (re.compile(rb"P[1-7Ff]\s"), "PNM"),
    (re.compile(rb"\x76\x2f\x31\x01"), "OpenEXR"),
    (re.compile(rb"\x59\xa6\x6a\x95"), "Sun raster"),
    (re.compile(rb"#\?(?:RADIANCE|RGBE)"), "Radiance HDR"),
    (re.compile(rb"II\xbc"), "JPEG XR"),
    (re.compile(rb"[\x8a\x8b][MJ]NG\r\n\x1a\n"), "MNG or JNG"),
    (re.compile(rb"gimp xcf"), "GIMP"),
    (re.compile(rb"DDS "), "DDS"),
    (re.compile(rb"qoif"), "QOI"),
    (re.compile(rb"%!PS|\xc5\xd0\xd3\xc6"), "PostScript"),
    (re.compile(rb".{128}DICM", re.DOTALL), "DICOM"),
    (re.compile(rb"\x93NUMPY"), "NumPy"),
    (re.compile(rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!"), "ZIP or another archive"),
)

Damage = Literal["truncated", "corrupt", "undecodable"]
_DAMAGE: Final[dict[Damage, str]] = {
    "truncated": "end too early",
    "corrupt": "are corrupt",
    "undecodable": "cannot be decoded",
}

# What is often sent in place of an image, and what to do instead.
_LOOKS_LIKE: Final = (
    (re.compile(rb"(?:\xef\xbb\xbf)?\s*<[!?a-z]", re.IGNORECASE), "HTML or XML", "send the image itself, not a page"),
    (re.compile(rb"data:image/|/9j/|iVBORw0KGgo|UklGR|R0lGOD"), "base64 text", "decode the base64 text first"),
    (re.compile(rb"[\t\n\r\x20-\x7e]+\Z"), "text", "send the content of the file, not its name or address"),
    (re.compile(rb""), "unknown data", "send the content of one image file"),
)


def sniff_format(data: bytes) -> str:
    """Return the format of a whole file, one of `FORMATS`, by its first 256 bytes.

    Raises:
        ImageError: No bytes, not an image, or a format that cannot be decoded, which the text names.
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


def unsupported(name: str, data: bytes, kind: str) -> ImageError:
    """Return the error for a whole file of a supported format, but of a kind that cannot be decoded."""
    text = f"image: expected a kind of {name} file that can be decoded, got one {kind} ({len(data)} bytes)"
    return ImageError(f"{text}; convert it to PNG, or to JPEG of 8 bits.", "format_not_supported")


def broken(name: str, data: bytes, why: str, reason: Damage = "corrupt") -> ImageError:
    """Return the error for a file of a supported format whose content is not whole."""
    return ImageError(
        f"image: expected a whole {name} file, got {len(data)} bytes that {_DAMAGE[reason]}: {why}; "
        f"send the file again, or save it again.",
        reason,
    )


def too_complex(name: str, what: str, most: int) -> ImageError:
    """Return the error for a file with so many parts that reading them takes longer than decoding a picture."""
    return ImageError(
        f"image: expected a {name} file of at most {most} {what}, got one with more; save it again.", "too_complex"
    )
