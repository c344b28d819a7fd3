"""Whole files of kinds that no decoder here reads: each has its own reason, and none is called damaged."""

from __future__ import annotations

import itertools
import struct
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from mlcls.errors import ImageError
from mlcls.images.decoding import decode_image
from support.image_samples import TiffTags, encode, encode_lossless_jpeg, make_tiff, make_tiff_pages, with_cv2

RANDOM = np.random.default_rng(5)
PIXELS = RANDOM.integers(0, 256, (16, 24, 3), dtype=np.uint8)
PICTURE = Image.fromarray(PIXELS)
JPEG, PROGRESSIVE = encode(PICTURE, "JPEG"), encode(PICTURE, "JPEG", progressive=True)
AVIF, GIF, PNG = encode(PICTURE, "AVIF"), encode(PICTURE.quantize(20), "GIF"), encode(PICTURE, "PNG")


def change(data: bytes, after: bytes, offset: int, new: bytes) -> bytes:
    """Write bytes at an offset from where some others are first."""
    at = data.index(after) + offset
    return data[:at] + new + data[at + len(new) :]


def bmp(header: int, compression: int, bits: int, masks: int = 0) -> bytes:
    """A BMP file of random pixels, 16 x 24, with the usual bit fields."""
    fields = (0x7C00, 0x3E0, 0x1F, 0x8000) if bits == 16 else (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    content = RANDOM.integers(0, 256, 16 * ((24 * bits + 31) // 32 * 4), dtype=np.uint8).tobytes()
    info = struct.pack("<IiiHHIIiiII", header, 24, 16, 1, bits, compression, len(content), 0, 0, 0, 0)
    info += struct.pack(f"<{masks}I", *fields[:masks]).ljust(header - 40, b"\0") + bytes(range(256)) * 4
    return b"BM" + struct.pack("<IHHI", 14 + len(info) + len(content), 0, 0, 14 + len(info)) + info + content


OLD_JPEG = make_tiff({258: [8, 8, 8], 259: 6, 262: 6, 277: 3, 513: None, 514: len(JPEG)}, JPEG)
UNSUPPORTED: dict[str, tuple[bytes, str]] = {
    "12-bit JPEG": (change(JPEG, b"\xff\xc0", 4, b"\x0c"), "JPEG .* one of 12-bit samples"),
    "12-bit lossless JPEG": (encode_lossless_jpeg(PIXELS[:, :, :1], 12), "JPEG .* one of 12-bit samples"),
    "lossless JPEG, gray": (
        encode_lossless_jpeg(PIXELS[:, :, :1]),
        "JPEG .* one of lossless coding in other colors",
    ),
    "hierarchical JPEG": (change(JPEG, b"\xff\xc0", 1, b"\xc5"), "JPEG .* one of hierarchical coding"),
    "JPEG-LS": (change(JPEG, b"\xff\xc0", 1, b"\xf7"), "JPEG .* one of JPEG-LS coding"),
    "JPEG of 2 channels": (change(JPEG, b"\xff\xc0", 9, b"\2"), "JPEG .* one of 2 channels"),
    "JPEG with DNL": (change(JPEG, b"\xff\xc0", 5, b"\0\0"), "JPEG .* one whose height follows its picture"),
    "old-style JPEG in TIFF": (OLD_JPEG, "TIFF .* one of compression old-style JPEG"),
    "JPEG 2000 in TIFF": (make_tiff({259: 34712}, JPEG), "TIFF .* one of compression JPEG 2000"),
    "unknown compression in TIFF": (make_tiff({259: 65000}, JPEG), "TIFF .* one of compression 65000"),
    "12-bit TIFF": (make_tiff({258: 12}, bytes(576)), "TIFF .* one of 1 x 12 bits a pixel, photo"),
    "float TIFF": (make_tiff({258: 32, 339: 3}, bytes(1536)), "TIFF .* one of 32-bit numbers, of which nothing"),
    "camera raw in TIFF": (make_tiff({258: 16, 262: 32803}, bytes(768)), "photometric interpretation 32803"),
    "BMP with alpha bit fields": (bmp(108, 3, 16, 4), "BMP .* one of 16 bits a pixel, compression 3, with a header of"),
    "BMP of 2 bits": (bmp(40, 0, 2), "BMP .* one of 2 bits a pixel"),
    "JPEG in BMP": (bmp(40, 4, 0), "BMP .* compression 4"),
    "PNG for iPhones": (PNG[:8] + b"\0\0\0\4CgBI" + bytes(8) + PNG[8:], "PNG .* one of Apple's variant"),
}


def large_avif(height: int, width: int) -> bytes:
    return change(AVIF, b"ispe", 8, struct.pack(">II", width, height))


def large_gif(offset: int) -> bytes:
    """A GIF file whose screen, at 6, or frame, at the offset of its size, says 17000 x 17000."""
    return GIF[:offset] + struct.pack("<HH", 17000, 17000) + GIF[offset + 4 :]


TOO_LARGE: dict[str, tuple[bytes, str, str]] = {
    "AVIF above Pillow's limit": (large_avif(16000, 16001), "too_many_pixels", "height 16000, width 16001"),
    "AVIF above libavif's limit": (large_avif(17000, 17001), "too_many_pixels", "height 17000, width 17001"),
    "AVIF with a long side": (large_avif(10, 40000), "side_too_long", "height 10, width 40000"),
    "GIF": (large_gif(6), "too_many_pixels", "height 17000, width 17000"),
    "GIF with a large frame": (
        large_gif(GIF.index(b"\x2c\0\0\0\0") + 5),
        "too_many_pixels",
        "height 17000, width 17000",
    ),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_a_kind_that_cannot_be_decoded_is_named(name: str) -> None:
    data, text = UNSUPPORTED[name]
    with pytest.raises(ImageError, match=text) as raised:
        decode_image(data)
    assert raised.value.reason == "format_not_supported"
    assert str(raised.value).endswith(f"({len(data)} bytes); convert it to PNG, or to JPEG of 8 bits.")


@pytest.mark.parametrize("name", TOO_LARGE)
def test_what_is_too_large_for_pillow_is_called_too_large(name: str) -> None:
    data, reason, size = TOO_LARGE[name]
    with pytest.raises(ImageError, match=rf"{size}.*; send a smaller one") as raised:
        decode_image(data)
    assert raised.value.reason == reason


def test_lossless_jpeg_of_rgb_is_read() -> None:
    data = encode_lossless_jpeg(PIXELS)
    np.testing.assert_array_equal(with_cv2(data), PIXELS)
    np.testing.assert_array_equal(decode_image(data), PIXELS)


def cv2_reads(data: bytes) -> bool:
    """Whether cv2 gives a picture that is not all black."""
    picture: Any = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    return picture is not None and bool(picture.any())


def outcome(data: bytes) -> str:
    try:
        return "read" if decode_image(data).any() else "black"
    except ImageError as error:
        return error.reason


def test_every_whole_tiff_file_is_read_or_named() -> None:
    """As cv2 reads it, but for 2 and 4 bits, which Pillow unpacks."""
    outcomes = set()
    colors, bits = (0, 1, 2, 3, 4, 5, 6, 8, 9, 32803, 34892), (1, 2, 4, 6, 8, 10, 12, 14, 16, 24, 32, 64)
    for color, depth, samples, number_format in itertools.product(colors, bits, (1, 2, 3, 4, 5), (1, 2, 3)):
        if color == 3 and samples > 2:  # cv2 reads some of these
            continue
        content = RANDOM.integers(1, 255, 24 * 16 * depth * samples // 8, dtype=np.uint8).tobytes()
        palette = RANDOM.integers(1, 65536, 3 << min(depth, 8)).tolist() if color == 3 else []
        numbers: TiffTags = {
            339: [number_format] * samples,
            277: samples,
            258: [depth] * samples,
            262: color,
        }
        data = make_tiff(numbers | ({320: palette} if palette else {}), content)
        case = (color, depth, samples, number_format)
        found = outcome(data)
        outcomes.add(found)
        by_pillow = depth in (2, 4) and samples == number_format == 1 and color in (0, 1, 3)
        assert found == ("read" if cv2_reads(data) or by_pillow else "format_not_supported"), case
    assert outcomes == {"read", "format_not_supported"}


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("color", [0, 1, 3])
def test_tiff_of_2_and_4_bits_is_read_as_of_8(color: int, bits: int) -> None:
    content = RANDOM.integers(0, 256, 24 * 16 * bits // 8, dtype=np.uint8)
    values = np.stack([content >> shift & (1 << bits) - 1 for shift in range(8 - bits, -1, -bits)], axis=1).reshape(
        16, 24
    )
    palette = RANDOM.integers(0, 256, (3, 1 << bits))
    grays = np.arange(1 << bits) * 255 // ((1 << bits) - 1)
    colors = palette if color == 3 else np.stack([grays if color else grays[::-1]] * 3)
    tags: TiffTags = {258: bits, 262: color} | ({320: (palette * 257).ravel().tolist()} if color == 3 else {})
    np.testing.assert_array_equal(decode_image(make_tiff(tags, content.tobytes())), colors.T[values])


@pytest.mark.parametrize("tile_height", [16, 32, 48, 64, 240])
@pytest.mark.parametrize("tile_width", [16, 32, 48, 64, 240])
def test_tiff_of_tiles_of_any_size(tile_height: int, tile_width: int) -> None:
    height, width = 100, 130
    pixels = RANDOM.integers(0, 256, (height, width, 3), dtype=np.uint8)
    tops, lefts = range(0, height, tile_height), range(0, width, tile_width)
    padded = np.pad(pixels, ((0, tile_height), (0, tile_width), (0, 0)))
    tiles = [padded[y : y + tile_height, x : x + tile_width].tobytes() for y in tops for x in lefts]
    tags: TiffTags = {256: width, 257: height, 258: [8, 8, 8], 262: 2, 277: 3, 322: tile_width, 323: tile_height}
    np.testing.assert_array_equal(decode_image(make_tiff_pages([(tags, tiles)])), pixels)


def test_every_whole_bmp_file_is_read_or_named() -> None:
    """As cv2 reads it."""
    outcomes = set()
    headers, bits = (40, 52, 56, 108, 124), (1, 2, 4, 8, 16, 24, 32, 64)
    for header, depth, compression in itertools.product(headers, bits, (0, 3, 4, 5, 6)):
        masks = 0 if compression not in (3, 6) else 3 if header <= 52 and compression == 3 else 4
        data = bmp(header, compression, depth, masks)
        found = outcome(data)
        outcomes.add(found)
        assert found == ("read" if cv2_reads(data) else "format_not_supported"), (header, depth, compression)
    assert outcomes == {"read", "format_not_supported"}
