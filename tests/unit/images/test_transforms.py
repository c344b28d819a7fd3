"""Decoding, resizing and normalizing, against cv2, Pillow and the arithmetic that PaddleX states."""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import simplejpeg
from PIL import Image, ImageOps

from mlcls.errors import ImageError
from mlcls.images import transforms
from mlcls.images.decoding import decode_image
from mlcls.images.settings import ImageSettings
from mlcls.images.transforms import normalize, preprocess, resize_image
from mlcls.model.spec import INTERPOLATIONS, ImageTransform, ResizeBackend
from support.image_samples import encode, make_png, oriented, with_cv2, write_samples

TRANSFORM = ImageTransform(448, 448, "pil", "BILINEAR", 1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

# A smooth picture without structure, `(149, 203, 3)` uint8 RGB.
PHOTO: npt.NDArray[np.uint8] = np.random.default_rng(7).integers(0, 256, (50, 68, 3), dtype=np.uint8)
PHOTO = np.asarray(Image.fromarray(PHOTO).resize((203, 149), Image.Resampling.BICUBIC))


def _interlaced_png(image: npt.NDArray[Any]) -> bytes:
    """Write the seven passes of Adam7, unfiltered."""
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    rows = (row for y, x, down, right in passes for row in image[y::down, x::right])
    height, width = image.shape[:2]
    return make_png(height, width, zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)), interlaced=1)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The twenty sample files."""
    return write_samples(tmp_path_factory.mktemp("samples"))


def make_awkward_files() -> dict[str, bytes]:
    """Small files of `PHOTO` in kinds that decoders often disagree about, by name."""
    photo, gray = Image.fromarray(PHOTO), ImageOps.grayscale(Image.fromarray(PHOTO))
    wide = PHOTO.astype(np.uint16) * 255 + 77
    palette = photo.quantize(40)
    files = {
        "png 16-bit gray": cv2.imencode(".png", wide[:, :, 0])[1].tobytes(),
        "png 16-bit rgb": cv2.imencode(".png", wide)[1].tobytes(),
        "png interlaced": _interlaced_png(PHOTO),
        "png palette with transparency": encode(palette, "PNG", transparency=bytes(range(0, 200, 5))),
        "png 1-bit": encode(gray.convert("1"), "PNG"),
        "png gray with alpha": encode(gray.convert("LA"), "PNG"),
        "png exif 6": encode(photo, "PNG", exif=oriented(6)),
        "png and more": encode(photo, "PNG") + b"more",
        "png animated": encode(photo, "PNG", save_all=True, append_images=[gray.convert("RGB")]),
        "jpeg cmyk": encode(photo.convert("CMYK"), "JPEG"),
        "jpeg rgb": encode(photo, "JPEG", keep_rgb=True),
        "jpeg gray progressive": encode(gray, "JPEG", progressive=True),
        "jpeg icc": encode(photo, "JPEG", icc_profile=bytes(70_000)),
        "jpeg and more": encode(photo, "JPEG") + bytes(100),
        "jpeg stray bytes": encode(photo, "JPEG")[:-2] + bytes(9) + b"\xff\xd9",
        "jpeg quality 1": encode(photo, "JPEG", quality=1),
        "mpo": encode(photo, "MPO", save_all=True, append_images=[gray.convert("RGB")]),
        "webp lossless": encode(photo, "WEBP", lossless=True),
        "webp alpha": encode(photo.convert("RGBA"), "WEBP", lossless=True, exif=oriented(1)),
        "webp exif 6": encode(photo, "WEBP", exif=oriented(6)),
        "bmp gray": encode(gray, "BMP"),
        "bmp rgba": encode(photo.convert("RGBA"), "BMP"),
        "tiff exif 6": encode(photo, "TIFF", exif=oriented(6)),
        "tiff 16-bit": cv2.imencode(".tiff", wide)[1].tobytes(),
        "tiff jpeg": encode(photo, "TIFF", compression="jpeg"),
        "tiff pages": encode(photo, "TIFF", save_all=True, append_images=[gray]),
    }
    ycck = files["jpeg cmyk"].replace(b"Adobe\0\x64\0\0\0\0\0", b"Adobe\0\x64\0\0\0\0\2")
    assert ycck != files["jpeg cmyk"]
    files["jpeg ycck"] = ycck
    files |= {f"jpeg exif {value}": encode(photo, "JPEG", exif=oriented(value)) for value in range(10)}
    for subsampling in ("444", "422", "420", "440", "411"):
        for height, width in ((149, 203), (1, 1), (16, 16), (17, 33), (8, 199), (101, 7)):
            crop = np.ascontiguousarray(PHOTO[:height, :width])
            name = f"jpeg {subsampling} {height}x{width}"
            files[name] = simplejpeg.encode_jpeg(crop, quality=87, colorsubsampling=subsampling)
    for subsampling in ("4:4:4", "4:2:2", "4:2:0"):
        for options in ({"restart_marker_blocks": 3}, {"progressive": True}, {"optimize": True, "quality": 40}):
            files[f"jpeg {subsampling} {options}"] = encode(photo, "JPEG", subsampling=subsampling, **options)
    return files


AWKWARD = make_awkward_files()


@pytest.mark.parametrize("name", AWKWARD)
def test_pixels_of_awkward_files_are_cv2s(name: str) -> None:
    """Whatever the kind: depth, palette, interlacing, color space, subsampling, orientation, trailing bytes."""
    image = decode_image(AWKWARD[name])
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    np.testing.assert_array_equal(image, with_cv2(AWKWARD[name]))


def test_memoryview_is_taken() -> None:
    """A slice of a larger buffer needs no copy by the caller."""
    data = AWKWARD["png interlaced"]
    np.testing.assert_array_equal(decode_image(memoryview(b"." + data)[1:]), PHOTO)


def test_gif_gives_its_first_frame() -> None:
    """Transparent pixels keep their palette color."""
    first, second = Image.fromarray(PHOTO).quantize(60), Image.new("P", (203, 149))
    data = encode(first, "GIF", save_all=True, append_images=[second], transparency=3)
    np.testing.assert_array_equal(decode_image(data), np.asarray(first.convert("RGB")))


def test_avif_is_turned_and_loses_its_alpha() -> None:
    """As cv2 would; AVIF is lossy, hence the tolerance."""
    image = Image.fromarray(PHOTO).convert("RGBA")
    image.putalpha(40)
    data = encode(image, "AVIF", quality=100, subsampling="4:4:4", exif=oriented(6))
    decoded = decode_image(data).astype(int)
    assert np.abs(decoded - np.rot90(PHOTO, -1)).max() <= 4


@pytest.mark.parametrize("backend", ["pil", "cv2"])
def test_resize_is_the_librarys(backend: ResizeBackend) -> None:
    """For all interpolations that a transform may name, up, down and to one row."""
    pil = dict(zip(INTERPOLATIONS["pil"], (0, 2, 3, 4, 1), strict=True))
    opencv = dict(zip(INTERPOLATIONS["cv2"], (0, 1, 2, 3, 4), strict=True))
    for interpolation in INTERPOLATIONS[backend]:
        for height, width in ((448, 448), (60, 200), (1, 300)):
            transform = ImageTransform(height, width, backend, interpolation, 1.0, (0.0,) * 3, (1.0,) * 3)
            if backend == "pil":
                expected = np.asarray(Image.fromarray(PHOTO).resize((width, height), pil[interpolation]))
            else:
                expected = cv2.resize(PHOTO, (width, height), interpolation=opencv[interpolation])
            resized = resize_image(PHOTO, transform)
            assert resized.shape == (height, width, 3)
            assert resized.flags.c_contiguous
            np.testing.assert_array_equal(resized, expected)


def test_preprocess_decodes_and_resizes(samples: list[Path]) -> None:
    """From bytes to the tensor `pixels`; an image that fits is not touched, as in PaddleX."""
    assert len(samples) == 20
    for path in samples:
        decoded = decode_image(path.read_bytes())
        np.testing.assert_array_equal(decoded, with_cv2(path.read_bytes()), err_msg=path.name)
        pixels = preprocess(path.read_bytes(), TRANSFORM)
        np.testing.assert_array_equal(pixels, resize_image(decoded, TRANSFORM))
        assert resize_image(pixels, TRANSFORM) is pixels


def test_normalize_is_paddlexs_arithmetic() -> None:
    """Bit for bit: a Python float times a float32 array, in place, channel by channel."""
    pixels = np.random.default_rng(1).integers(0, 256, (3, 20, 17, 3), dtype=np.uint8)
    pixels[0, :16, :16, :] = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    clip_mean, clip_std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    clip = ImageTransform(20, 17, "pil", "BICUBIC", 0.00392156862745098, clip_mean, clip_std)
    for transform in (TRANSFORM, clip):
        expected = pixels.astype(np.float32)
        for channel in range(3):
            expected[..., channel] *= transform.scale / transform.std[channel]
            expected[..., channel] += -transform.mean[channel] / transform.std[channel]
        normalized = normalize(pixels, transform)
        assert normalized.dtype == np.float32
        assert normalized.shape == (3, 3, 20, 17)
        assert normalized.flags.c_contiguous
        assert normalized.tobytes() == np.ascontiguousarray(expected.transpose(0, 3, 1, 2)).tobytes()


PHOTO_GIF = encode(PHOTO, "GIF")
NO_END = "bytes that end too early: its end marker is missing; send the file again, or save it again."


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (AWKWARD["jpeg icc"][:72_000], f"image: expected a whole JPEG file, got 72000 {NO_END}"),
        (AWKWARD["jpeg gray progressive"][:-2], NO_END),
        (AWKWARD["jpeg cmyk"][:900], NO_END),
        (AWKWARD["jpeg exif 6"][:900], NO_END),
        (make_png(149, 203, b"??"), "bytes that cannot be decoded: cv2 cannot decode it; send the file again"),
        (encode(PHOTO, "BMP")[:-9], "image: expected a whole BMP file, got "),
        (encode(PHOTO, "AVIF")[:-99], "image: expected a whole AVIF file, got "),
        (PHOTO_GIF[:-999], f"got {len(PHOTO_GIF) - 999} bytes that end too early: Pillow says image "),
    ],
)
def test_errors_say_what_was_expected_and_what_came(data: bytes, text: str) -> None:
    """In one line each."""
    with pytest.raises(ImageError) as raised:
        decode_image(data)
    assert text in str(raised.value)
    assert "\n" not in str(raised.value)


def test_jpeg_without_end_marker_is_whole_if_its_picture_is() -> None:
    """Two bytes are missing, no pixel is."""
    for name in ("jpeg exif 1", "jpeg exif 6", "jpeg cmyk", "jpeg 411 17x33"):
        data = AWKWARD[name]
        assert data.endswith(b"\xff\xd9")
        np.testing.assert_array_equal(decode_image(data[:-2]), with_cv2(data))


def test_animated_png_gives_its_still_picture() -> None:
    """And no frame, however large, reaches cv2."""
    data = AWKWARD["png animated"]
    np.testing.assert_array_equal(decode_image(data), PHOTO)
    at = data.index(b"fcTL") + 8  # a frame of 30000 x 30000 ends a process that hands it to cv2 4.11
    np.testing.assert_array_equal(decode_image(data[:at] + struct.pack(">II", 30000, 30000) + data[at + 8 :]), PHOTO)


def test_gif_frame_larger_than_its_screen_is_over_the_limit() -> None:
    """The screen's size in the header does not count then."""
    data = bytearray(PHOTO_GIF)
    struct.pack_into("<HH", data, 6, 2, 2)
    with pytest.raises(ImageError, match="at most 9 pixels, got height 149, width 203"):
        decode_image(bytes(data), ImageSettings(max_pixels=9))


def test_broken_png_takes_no_memory() -> None:
    """Run apart, because the peak of a process never falls; cv2 alone takes 763 MB for these 59 bytes."""
    data = make_png(100, 100, b"xx").replace(b"\0\0\0\2IDAT", struct.pack(">I", 800_000_000) + b"IDAT")
    code = (
        "import resource, sys\n"
        "from mlcls.errors import ImageError\n"
        "from mlcls.images.decoding import decode_image\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n    decode_image(bytes.fromhex(sys.argv[1]))\n"
        "except ImageError:\n    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    env = os.environ | {"PYTHONPATH": str(Path(transforms.__file__).parents[2])}
    ran = subprocess.run([sys.executable, "-c", code, data.hex()], capture_output=True, check=True, env=env)
    assert int(ran.stdout) < 20_000  # KiB


def test_damaged_files_raise_nothing_but_image_error(samples: list[Path]) -> None:
    """Truncated or changed at random, they give an image or an `ImageError`."""
    chance = random.Random(20)
    files = [path.read_bytes() for path in samples if path.stat().st_size < 100_000]
    files += [data for data in AWKWARD.values() if len(data) > 200]
    files += [encode(PHOTO, "AVIF"), PHOTO_GIF]
    refused = 0
    for _ in range(300):
        data = bytearray(chance.choice(files))
        if chance.random() < 0.4:
            del data[chance.randrange(len(data)) :]
        for _ in range(chance.randrange(1, 12)):
            if data:
                end = chance.choice((64, 700, len(data)))
                data[chance.randrange(min(end, len(data)))] = chance.randrange(256)
        try:
            image = decode_image(bytes(data), ImageSettings(max_pixels=4_000_000))
        except ImageError as error:
            refused += 1
            assert str(error).startswith("image: expected ")
        else:
            assert image.ndim == 3
            assert image.shape[2] == 3
    assert 100 < refused < 300
