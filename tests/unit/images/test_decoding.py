"""Truncated and damaged files, accepted or not; TIFF compressions that cv2 lacks; orientations."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from mlcls.errors import ImageError
from mlcls.images.decoding import decode_image
from mlcls.images.settings import ImageSettings
from support.image_samples import encode, oriented, with_cv2

NOISE = np.random.default_rng(3).integers(0, 256, (12, 16, 3), dtype=np.uint8)
# Smooth, 91 x 123.
PHOTO = Image.fromarray(NOISE).resize((123, 91), Image.Resampling.BICUBIC)
ACCEPTING = ImageSettings(accept_truncated=True)

JPEGS: dict[str, bytes] = {
    "baseline": encode(PHOTO, "JPEG", quality=88),
    "4:4:4": encode(PHOTO, "JPEG", subsampling="4:4:4"),
    "progressive": encode(PHOTO, "JPEG", progressive=True),
    "gray": encode(PHOTO.convert("L"), "JPEG"),
    "gray progressive": encode(PHOTO.convert("L"), "JPEG", progressive=True),
    "CMYK": encode(PHOTO.convert("CMYK"), "JPEG"),
    "restarts": encode(PHOTO, "JPEG", restart_marker_blocks=2),
    "turned": encode(PHOTO, "JPEG", exif=oriented(6)),
    "turned progressive": encode(PHOTO, "JPEG", exif=oriented(7), progressive=True),
    "pages": encode(PHOTO, "MPO", save_all=True, append_images=[PHOTO.rotate(180)]),
}
OTHERS: dict[str, bytes] = {
    "PNG": encode(PHOTO, "PNG"),
    "PNG palette": encode(PHOTO.quantize(30), "PNG"),
    "WebP": encode(PHOTO, "WEBP"),
    "WebP lossless": encode(PHOTO, "WEBP", lossless=True),
    "BMP": encode(PHOTO, "BMP"),
    "BMP palette": encode(PHOTO.quantize(30), "BMP"),
    "TIFF": encode(PHOTO, "TIFF"),
    "TIFF LZW": encode(PHOTO, "TIFF", compression="tiff_lzw"),
    "TIFF LZMA": encode(PHOTO, "TIFF", compression="lzma"),
    "GIF": encode(PHOTO.quantize(30), "GIF"),
    "AVIF": encode(PHOTO, "AVIF"),
}


def read_with_cv2(data: bytes, path: Path) -> npt.NDArray[Any] | None:
    """What PaddleX's reader does with a file: its picture, RGB, or None."""
    path.write_bytes(data)
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    return None if image is None else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def cuts(data: bytes) -> list[bytes]:
    return [data[: len(data) * part // 23] for part in range(1, 23)] + [data[:-end] for end in (1, 2, 3, 5, 10, 30)]


@pytest.mark.parametrize("name", JPEGS)
def test_truncated_jpeg_is_accepted_on_request_as_cv2_reads_it(name: str, tmp_path: Path) -> None:
    whole = decode_image(JPEGS[name])
    partly = 0
    for data in cuts(JPEGS[name]):
        expected = read_with_cv2(data, tmp_path / "cut.jpg")
        if expected is None:
            with pytest.raises(ImageError):
                decode_image(data, ACCEPTING)
        else:
            picture = decode_image(data, ACCEPTING)
            np.testing.assert_array_equal(picture, expected)
            partly += not np.array_equal(picture, whole)
    assert partly > 5


@pytest.mark.parametrize("name", [*JPEGS, *OTHERS])
def test_a_truncated_file_is_refused_or_has_all_its_pixels(name: str) -> None:
    data = (JPEGS | OTHERS)[name]
    whole = decode_image(data)
    refused = 0
    for cut in cuts(data):
        try:
            np.testing.assert_array_equal(decode_image(cut), whole)
        except ImageError:
            refused += 1
    assert refused > (10 if name == "pages" else 20)


@pytest.mark.parametrize("name", OTHERS)
def test_of_other_formats_nothing_is_accepted_that_cv2_refuses(name: str, tmp_path: Path) -> None:
    for data in cuts(OTHERS[name]):
        if read_with_cv2(data, tmp_path / "cut") is None:
            try:  # whole all the same: of a GIF file the end marker is missing, for example
                picture = decode_image(data, ACCEPTING)
            except ImageError:
                continue
            np.testing.assert_array_equal(picture, decode_image(OTHERS[name]))


def damage(data: bytes, count: int, seed: int) -> bytes:
    """Other bytes in the picture data."""
    chance = np.random.default_rng(seed)
    begin = data.rindex(b"\xff\xda") + 14
    changed = bytearray(data)
    for at in chance.integers(begin, len(data) - 2, count):
        changed[at] = int(chance.integers(0, 255))
    return bytes(changed)


@pytest.mark.parametrize("name", ["baseline", "gray", "turned", "CMYK", "restarts"])
def test_jpeg_damage_that_libjpeg_finds_is_refused(name: str) -> None:
    whole = JPEGS[name]
    # the scan ends in its middle, and the end marker is there
    half = whole[: (whole.rindex(b"\xff\xda") + len(whole)) // 2] + b"\xff\xd9"
    with pytest.raises(ImageError, match="libjpeg says Corrupt JPEG data: premature end of data segment; ") as raised:
        decode_image(half)
    assert raised.value.reason == "corrupt"
    np.testing.assert_array_equal(decode_image(half, ACCEPTING), with_cv2(half))
    outcomes = set()
    for seed in range(40):
        data = damage(whole, 3, seed)
        try:
            decode_image(data)
            outcomes.add("read")
        except ImageError as error:
            outcomes.add(error.reason)
        assert decode_image(data, ACCEPTING).ndim == 3
    assert "corrupt" in outcomes


TIFF_MODES = {
    "RGB": PHOTO,
    "gray": PHOTO.convert("L"),
    "1 bit": PHOTO.convert("1"),
    "palette": PHOTO.quantize(50),
    "alpha": PHOTO.convert("RGBA"),
    "gray alpha": PHOTO.convert("LA"),
    "CMYK": PHOTO.convert("CMYK"),
    "16 bits": Image.fromarray(np.asarray(PHOTO.convert("L")).astype(np.uint16) * 255 + 77),
    "Lab": Image.frombytes("LAB", PHOTO.size, PHOTO.tobytes()),
}


@pytest.mark.parametrize("compression", ["lzma", "zstd"])
@pytest.mark.parametrize(
    ("mode", "value"), [*((mode, 1) for mode in TIFF_MODES), *(("RGB", value) for value in range(2, 9))]
)
def test_tiff_compressions_that_cv2_lacks_are_read_as_the_others_are(mode: str, value: int, compression: str) -> None:
    """Upright. The same picture, compressed so that cv2 reads it, is the reference."""
    picture, exif = TIFF_MODES[mode], oriented(value)
    plain, other = (encode(picture.copy(), "TIFF", compression=each, exif=exif) for each in ("tiff_lzw", compression))
    assert cv2.imdecode(np.frombuffer(other, np.uint8), cv2.IMREAD_COLOR) is None
    np.testing.assert_array_equal(decode_image(other), with_cv2(plain))


@pytest.mark.parametrize("mode", ["F", "I"])
@pytest.mark.parametrize("compression", ["tiff_lzw", "lzma"])
def test_tiff_of_numbers_that_are_no_colors_is_refused(mode: str, compression: str) -> None:
    """As cv2 refuses it: nobody knows which number is white."""
    with pytest.raises(ImageError, match="of 32-bit numbers, of which nothing says which is white") as raised:
        decode_image(encode(PHOTO.convert(mode), "TIFF", compression=compression))
    assert raised.value.reason == "format_not_supported"


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 2), (1, 3000), (3000, 1)])
@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_tiny_and_thin_pictures(height: int, width: int, name: str) -> None:
    color = (200, 30, 90)
    settings = ImageSettings(max_aspect_ratio=3000)
    picture = decode_image(encode(Image.new("RGB", (width, height), color), name, quality=95), settings)
    assert picture.shape == (height, width, 3)
    assert np.abs(picture.astype(int) - color).max() <= 8


def test_first_frame_of_an_animated_webp_on_its_canvas() -> None:
    """A frame smaller than the canvas lies where it says; around it is the background, black without its alpha."""
    canvas = Image.new("RGBA", (40, 30), (0, 0, 0, 0))
    canvas.paste((10, 200, 30, 255), (10, 8, 30, 20))
    data = encode(canvas, "WEBP", save_all=True, append_images=[Image.new("RGBA", (40, 30), "red")], lossless=True)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(image.convert("RGB"))
    inside = decode_image(data)[8:20, 10:30]
    np.testing.assert_array_equal(inside, expected[8:20, 10:30])


def test_a_gif_whose_first_frame_is_smaller_than_its_screen() -> None:
    data = bytearray(encode(PHOTO.quantize(30), "GIF"))
    struct.pack_into("<HH", data, 6, 200, 100)
    picture = decode_image(bytes(data))
    assert picture.shape == (100, 200, 3)
    np.testing.assert_array_equal(picture[:91, :123], decode_image(encode(PHOTO.quantize(30), "GIF")))
