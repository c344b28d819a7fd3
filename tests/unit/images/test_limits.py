"""What is refused before a pixel is decoded, with its text, its reason and no more time than a header takes."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import cv2
import pytest
import simplejpeg
from PIL import Image

from mlcls.errors import IMAGE_REASONS, ImageError
from mlcls.images.decoding import decode_image
from mlcls.images.encoded_image import open_image
from mlcls.images.settings import ImageSettings
from support.image_samples import encode, make_png

PICTURE = Image.effect_noise((40, 30), 60).convert("RGB")
LONG = Image.new("RGB", (900, 30), "green")


def animated(format_name: str, frames: int = 3) -> bytes:
    further = [Image.new("RGB", PICTURE.size, (40 * index, 9, 9)) for index in range(1, frames)]
    return encode(PICTURE.copy(), format_name, save_all=True, append_images=further)


def many_chunks(count: int) -> bytes:
    data = encode(PICTURE, "PNG")
    empty = struct.pack(">I", 0) + b"teXt" + struct.pack(">I", zlib.crc32(b"teXt"))
    return data[:33] + empty * count + data[33:]


def many_scans(count: int) -> bytes:
    """A progressive file whose last scan, of a few bytes, stands there many times."""
    data = encode(Image.new("RGB", (64, 64)), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + data[-2:]


def many_blocks(kind: bytes) -> bytes:
    data = encode(PICTURE.quantize(16), "GIF")
    at = data.index(b"\x2c\0\0\0\0")
    return data[:at] + kind * 200_000 + data[at:]


def many_webp_chunks() -> bytes:
    data = encode(PICTURE.convert("RGBA"), "WEBP", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0")
    assert data[12:16] == b"VP8X"
    data = data[:30] + b"JUNK\0\0\0\0" * 10_000 + data[30:]
    return data[:4] + struct.pack("<I", len(data) - 8) + data[8:]


PNG, JUNK, THREE = encode(PICTURE, "PNG"), b"\xff\xd8" + b"\xff\xfe\0\2" * 5000, ("JPEG", "PNG", "WebP")
BOMB = make_png(60_000, 60_000, zlib.compress(bytes(18_000_000)))
TALL = encode(LONG.rotate(90, expand=True), "WEBP")
RATIO = "one side to be at most 29.9 times as long as the other, got height 30, width 900; send a part of it."
REFUSED: list[tuple[bytes, dict[str, Any], str, str]] = [
    (PNG, {"max_bytes": 99}, "too_many_bytes", "at most 99 bytes, got "),
    (PNG, {"max_pixels": 1199}, "too_many_pixels", "at most 1199 pixels, got height 30, width 40 (1200); send a sma"),
    (
        PNG,
        {"max_side": 39},
        "side_too_long",
        "sides of at most 39 pixels, got height 30, width 40; send a smaller",
    ),
    (encode(LONG, "JPEG"), {"max_aspect_ratio": 29.9}, "aspect_ratio", RATIO),
    (TALL, {"max_aspect_ratio": 29}, "aspect_ratio", "one side to be at most 29 times as long"),
    (encode(PICTURE, "TIFF"), {"formats": THREE}, "format_not_allowed", "JPEG, PNG or WebP, which is all that "),
    (encode(PICTURE, "AVIF"), {"formats": ("JPEG",)}, "format_not_allowed", "JPEG, which is all that this model acc"),
    (BOMB, {}, "side_too_long", "sides of at most 20000 pixels, got height 60000, width 60000"),
    (many_chunks(70_000), {}, "too_complex", "a PNG file of at most 65536 chunks, got one with more"),
    (JUNK, {}, "too_complex", "a JPEG file of at most 4096 segments before its picture"),
    (many_scans(200), {}, "too_complex", "a JPEG file of at most 100 scans, got one with more"),
    (many_blocks(b"\x21\xfe\1a\0"), {}, "too_complex", "a GIF file of at most 8"),
    (many_blocks(b"\x21\xfe\0"), {}, "too_complex", "a GIF file of at most 7"),
    (many_webp_chunks(), {}, "too_complex", "a WebP file of at most 5097 chunks"),
]
REFUSED += [
    (animated(name), {"max_frames": 2}, "too_many_frames", "at most 2 frames or pages, got more;")
    for name in ("GIF", "PNG", "WEBP", "TIFF", "AVIF")
]


@pytest.mark.parametrize(("data", "limits", "reason", "words"), REFUSED, ids=[words for *_, words in REFUSED])
def test_each_limit_has_its_own_error_before_decoding(
    data: bytes, limits: dict[str, Any], reason: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for library, function in ((cv2, "imdecode"), (simplejpeg, "decode_jpeg"), (Image.Image, "convert")):
        monkeypatch.setattr(library, function, lambda *_, **__: pytest.fail("a decoder was called"))
    with pytest.raises(ImageError) as raised:
        decode_image(data, ImageSettings(**limits))
    assert raised.value.reason == reason
    assert reason in IMAGE_REASONS
    assert str(raised.value).startswith(f"image: expected {words}")


@pytest.mark.parametrize("name", ["GIF", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("frames", [1, 2, 7])
def test_frames_are_counted(name: str, frames: int) -> None:
    data = animated(name, frames)
    assert open_image(data).frames == frames
    assert open_image(data, ImageSettings(max_frames=3)).frames in {min(frames, 4), frames}
    with Image.open(io.BytesIO(data)) as image:
        assert getattr(image, "n_frames", 1) == frames


def test_pages_in_a_circle_end() -> None:
    data = bytearray(animated("TIFF", 2))
    (first,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, first)
    struct.pack_into("<I", data, first + 2 + 12 * count, first)
    assert open_image(bytes(data)).frames == 1
