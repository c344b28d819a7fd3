"""Format and size from the first bytes, and what is refused without decoding."""

from __future__ import annotations

import struct

import pytest
from PIL import Image

from mlcls.errors import IMAGE_REASONS, ImageError, ImageReason
from mlcls.images.encoded_image import open_image
from mlcls.images.formats import FORMATS, sniff_format
from support.image_samples import encode

EXPECTED = "image: expected the bytes of one JPEG, PNG, WebP, BMP, TIFF, GIF or AVIF file, got "


def plain(format_name: str, mode: str = "RGB", **options: object) -> bytes:
    """Encode a picture of one color, height 23 and width 37."""
    return encode(Image.new(mode, (37, 23), 90 if mode == "L" else None), format_name, **options)


def tiff(height: int, width: int, tile: int = 0, big: bool = False) -> bytes:
    """Return a TIFF file that has only a directory."""
    tags = [(256, width), (257, height)] + ([(322, tile), (323, tile)] if tile else [])
    if big:
        entries = b"".join(struct.pack(">HHQQ", tag, 16, 1, value) for tag, value in tags)
        return b"MM\0+" + struct.pack(">HHQQ", 8, 0, 16, len(tags)) + entries + bytes(8)
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("JPEG", plain("JPEG", progressive=True)),
        ("JPEG", plain("MPO", mode="RGB")),
        ("PNG", plain("PNG", mode="1")),
        ("WebP", plain("WEBP")),
        ("WebP", plain("WEBP", lossless=True)),
        ("WebP", plain("WEBP", mode="RGBA", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0")),
        ("BMP", plain("BMP", mode="L")),
        ("BMP", plain("BMP").replace(struct.pack("<i", 23), struct.pack("<i", -23))),  # rows from the top down
        ("BMP", b"BM" + struct.pack("<IIIIHHHH", 32, 0, 26, 12, 37, 23, 1, 24) + bytes(6)),  # the oldest header
        ("TIFF", plain("TIFF", mode="I;16")),
        ("TIFF", plain("TIFF", big_tiff=True)),
        ("TIFF", tiff(23, 37, big=True)),
        ("GIF", plain("GIF", mode="P")),
        ("AVIF", plain("AVIF")),
    ],
)
def test_size_of_each_kind(name: str, data: bytes) -> None:
    """Every format, and the kinds of header that some have."""
    assert name in FORMATS
    image = open_image(data)
    assert (image.format, image.height, image.width) == (name, 23, 37)


@pytest.mark.parametrize(
    ("data", "reason", "text"),
    [
        (b"", "empty", "0 bytes; send the content of the file."),
        (b"<!DOCTYPE html>\n<html>", "unknown_format", "HTML or XML (22 bytes that begin with b'<!DOCTYPE html>\\n"),
        (b"/9j/4AAQSkZJRgABAQ", "unknown_format", "base64 text (18 bytes that begin with b'/9j/4AAQSkZJRgAB'); decode"),
        (b"cat.jpg", "unknown_format", "text (7 bytes that begin with b'cat.jpg'); send the content of the file, not"),
        (b"\0\1\2\xfe", "unknown_format", "unknown data (4 bytes that begin with b'\\x00\\x01\\x02\\xfe'); send the"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "format_not_supported", "HEIC (24 bytes); convert it to JPEG or PNG."),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "format_not_supported", "HEIC (24 bytes)"),
        (b"\0\0\0\x18ftypisom\0\0\0\0mp42isom", "format_not_supported", "MP4 or QuickTime (24 bytes)"),
        (b"%PDF-1.7\n", "format_not_supported", "PDF (9 bytes); convert it to JPEG or PNG."),
        (b'<?xml version="1.0"?>\n<svg xmlns="x">', "format_not_supported", "SVG (37 bytes)"),
        (b"<svg/>", "format_not_supported", "SVG (6 bytes)"),
        (b"\0\0\1\0\1\0\x10\x10", "format_not_supported", "ICO (8 bytes)"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "format_not_supported", "JPEG 2000 (12 bytes)"),
        (b"P6\n1 1\n255\n...", "format_not_supported", "PNM (14 bytes)"),
        (b"\x59\xa6\x6a\x95" + bytes(28), "format_not_supported", "Sun raster (32 bytes)"),
        (b"8BPS\0\1", "format_not_supported", "Photoshop (6 bytes)"),
        (b"II*\0\x10\0\0\0CR\2\0", "format_not_supported", "camera raw (12 bytes)"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1", "format_not_supported", "camera raw (16 bytes)"),
        (b"RIFF\0\0\0\0AVI LIST", "format_not_supported", "AVI or WAV (16 bytes)"),
        (b"\x1a\x45\xdf\xa3\x9f\x42", "format_not_supported", "Matroska or WebM (6 bytes)"),
        (b"\0\0\0\x08wide\0\0\0\x08mdat", "format_not_supported", "MP4 or QuickTime (16 bytes)"),
        (b"PK\3\4\x14\0", "format_not_supported", "ZIP or another archive (6 bytes)"),
    ],
)
def test_what_is_not_an_image_is_named(data: bytes, reason: ImageReason, text: str) -> None:
    """With what it looks like and what to do."""
    with pytest.raises(ImageError) as raised:
        sniff_format(data)
    assert str(raised.value).startswith(EXPECTED + text)
    assert raised.value.reason == reason


def png_chunk(kind: bytes, length: int, content: bytes = b"") -> bytes:
    """A chunk that may lie about its length."""
    return struct.pack(">I4s", length, kind) + content + bytes(4)


PNG_START = plain("PNG")[:33]


@pytest.mark.parametrize(
    ("data", "reason", "text"),
    [
        (PNG_START + png_chunk(b"IDAT", 1 << 30), "truncated", "its chunk b'IDAT' says 1073741824 bytes, only 0 are "),
        (PNG_START + png_chunk(b"IDAT", 0), "truncated", "it has no IEND chunk"),
        (PNG_START + png_chunk(b"IEND", 0), "corrupt", "it has no IDAT chunk"),
        (PNG_START[:8] + b"\0\0\0\4IHDX" + bytes(30), "corrupt", "its first chunk is b'IHDX', not IHDR"),
        (PNG_START[:20], "truncated", "its header is cut off"),
        (plain("PNG").replace(struct.pack(">II", 37, 23), bytes(8)), "corrupt", "its header says height 0, width 0"),
        (plain("PNG")[:-12], "truncated", "it has no IEND chunk"),
        (plain("JPEG")[:100], "truncated", "it ends before its picture data"),
        (plain("JPEG")[:20] + b"\xff\xd9", "truncated", "it ends before its picture data"),
        (b"\xff\xd8" + b"\xff" * 1_000_000, "truncated", "it ends before its picture data"),
        (plain("WEBP")[:-9], "truncated", "its header says "),
        (b"RIFF\x04\0\0\0WEBPVP9 ", "corrupt", "its first chunk is b'VP9 '"),
        (plain("BMP")[:20], "truncated", "its header is cut off"),
        (plain("TIFF")[:60], "truncated", "its directory of "),
        (tiff(10, 10, tile=16000), "corrupt", "its tiles of 16000 x 16000 are larger than the picture"),
        (b"MM\0+" + b"\xff" * 20, "truncated", "its header is cut off"),
        (plain("GIF", mode="P")[:8], "truncated", "its header is cut off"),
        (plain("AVIF")[:60], "undecodable", "Pillow cannot read it; send the file again, or save it again."),
    ],
)
def test_broken_files_are_described(data: bytes, reason: ImageReason, text: str) -> None:
    """With what is wrong, and one word of a closed set, for counting."""
    with pytest.raises(ImageError, match=r"image: expected a whole [A-Za-z]+ file, got") as raised:
        open_image(data)
    damage = {"truncated": "end too early", "corrupt": "are corrupt", "undecodable": "cannot be decoded"}[reason]
    assert f"got {len(data)} bytes that {damage}: {text}" in str(raised.value)
    assert raised.value.reason == reason
    assert reason in IMAGE_REASONS
