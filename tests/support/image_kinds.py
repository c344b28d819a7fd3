"""A small file of every kind that can be decoded, for tests that compare decoders, versions and ways in."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from benchmarks.endurance.fuzzing.image_seeds import make_seed_images
from support.image_samples import TiffTags, encode, encode_lossless_jpeg, make_tiff, oriented

_HEIGHT, _WIDTH = 16, 24


def make_kinds() -> dict[str, bytes]:
    """Return files by name, which begins with the format; the same at every call."""
    generator = np.random.default_rng(7)

    def noise(*channels: int, bits: int = 8) -> npt.NDArray[Any]:
        return generator.integers(
            0, 1 << bits, (_HEIGHT, _WIDTH, *channels), dtype=np.uint8 if bits == 8 else np.uint16
        )

    rgb, cmyk = Image.fromarray(noise(3)), Image.frombytes("CMYK", (_WIDTH, _HEIGHT), noise(4).tobytes())
    rgba, gray_alpha = (Image.fromarray(noise(channels)) for channels in (4, 2))
    wide = Image.fromarray(noise(bits=16))
    ycck = encode(cmyk, "JPEG", quality=95).replace(b"Adobe\0d\0\0\0\0\0", b"Adobe\0d\0\0\0\0\2")
    jpeg = encode(rgb, "JPEG", subsampling="4:2:0")
    files = {
        "JPEG noise": jpeg,
        "JPEG noise 4:2:2 turned": encode(rgb, "JPEG", subsampling="4:2:2", exif=oriented(5)),
        "JPEG CMYK noise turned": encode(cmyk, "JPEG", quality=95, exif=oriented(8)),
        "JPEG YCCK": ycck,
        "JPEG lossless": encode_lossless_jpeg(np.asarray(rgb)),
        "JPEG arithmetic": jpeg.replace(b"\xff\xc0", b"\xff\xc9", 1),  # to that coding, any bytes are a picture
        "PNG RGBA noise": encode(rgba, "PNG"),
        "PNG RGB 16 bits": _encode_with_cv2(".png", noise(3, bits=16)),
        "PNG RGBA 16 bits": _encode_with_cv2(".png", noise(4, bits=16)),
        "WebP turned": encode(rgb, "WEBP", exif=oriented(6)),
        "WebP lossless turned": encode(rgba, "WEBP", lossless=True, exif=oriented(3)),
        "AVIF turned": encode(rgb, "AVIF", exif=oriented(6)),
        "TIFF RGB 16 bits": _encode_with_cv2(".tif", noise(3, bits=16)),
        "TIFF RGBA 16 bits": _encode_with_cv2(".tif", noise(4, bits=16)),
        "TIFF gray 16 bits noise": encode(wide, "TIFF", compression="tiff_lzw"),
        # compressed: of others, Pillow 13 maps the file with height and width exchanged
        "TIFF gray 16 bits turned": encode(wide.copy(), "TIFF", compression="tiff_lzw", exif=oriented(6)),
        "TIFF gray 16 bits zstd": encode(wide.copy(), "TIFF", compression="zstd"),
        "TIFF gray 16 bits, big-endian": encode(
            Image.frombytes("I;16B", (_WIDTH, _HEIGHT), noise(bits=16).tobytes()), "TIFF"
        ),
        "TIFF CMYK": encode(cmyk.copy(), "TIFF"),
        "TIFF CMYK zstd": encode(cmyk.copy(), "TIFF", compression="zstd"),
        "TIFF Lab": encode(Image.frombytes("LAB", rgb.size, rgb.tobytes()), "TIFF"),
        "TIFF RGBA": encode(rgba.copy(), "TIFF"),
        "TIFF RGBA lzma": encode(rgba.copy(), "TIFF", compression="lzma"),
        "TIFF gray alpha": encode(gray_alpha, "TIFF"),
        "TIFF palette": encode(rgb.quantize(50), "TIFF"),
        "TIFF 1 bit": encode(rgb.convert("1"), "TIFF"),
    }
    more: dict[str, tuple[TiffTags, npt.NDArray[Any]]] = {
        "white is 0": ({258: 8, 262: 0}, noise()),
        "YCbCr": ({258: [8, 8, 8], 262: 6, 277: 3, 530: [1, 1]}, noise(3)),
        "RGB and an unknown sample": ({258: [8] * 4, 262: 2, 277: 4, 338: 0}, noise(4)),
        "RGB and a sample without a name": ({258: [8] * 4, 262: 2, 277: 4}, noise(4)),
        "RGB multiplied by its alpha": ({258: [8] * 4, 262: 2, 277: 4, 338: 1}, np.sort(noise(4), axis=2)),
        "4 bits": ({258: 4}, noise()[: _HEIGHT // 2]),
        "2 bits": ({258: 2}, noise()[: _HEIGHT // 4]),
    }
    files |= {f"TIFF {name}": make_tiff(tags, pixels.tobytes()) for name, (tags, pixels) in more.items()}
    return make_seed_images() | files


def _encode_with_cv2(suffix: str, pixels: npt.NDArray[Any]) -> bytes:
    return cv2.imencode(suffix, pixels)[1].tobytes()
