"""Generated image files of every kind that can be decoded, for the fuzz run to change and to mix in."""

from __future__ import annotations

import io
import struct
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from benchmarks.load.images import make_png

# Height and width of the files; odd, so that no format's blocks end at the edge of the picture.
SIZE: Final = (61, 83)
_ORIENTATION: Final = 0x0112
_ADAM7: Final = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def make_picture(seed: int, color: tuple[int, int, int] = (128, 128, 128)) -> Image.Image:
    """Return a smooth picture of `SIZE` around a color."""
    noise = np.random.default_rng(seed).integers(-70, 70, (7, 9, 3))
    small = np.clip(noise + np.array(color), 0, 255).astype(np.uint8)
    return Image.fromarray(small).resize(SIZE[::-1], Image.Resampling.BICUBIC)


def encode(image: Image.Image, format_name: str, **options: Any) -> bytes:
    """Encode a picture with Pillow."""
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def make_seed_images() -> dict[str, bytes]:
    """Return good files by name, which begins with the format; the same at every call."""
    picture = make_picture(1)
    gray, palette = picture.convert("L"), picture.quantize(40)
    exif = Image.Exif()
    exif[_ORIENTATION] = 6
    wide = np.asarray(gray).astype(np.uint16) * 257
    # Pillow leaves settings of the last format in the extra frames, so each file has its own
    frames = [{"save_all": True, "append_images": [make_picture(2), make_picture(3)]} for _ in range(4)]
    translucent = picture.convert("RGBA")
    translucent.putalpha(90)
    files = {
        "JPEG baseline": encode(picture, "JPEG", quality=85),
        "JPEG 4:4:4 restarts": encode(picture, "JPEG", subsampling="4:4:4", restart_marker_blocks=2),
        "JPEG progressive": encode(picture, "JPEG", progressive=True, quality=80),
        "JPEG gray": encode(gray, "JPEG"),
        "JPEG CMYK": encode(picture.convert("CMYK"), "JPEG"),
        "JPEG turned": encode(picture, "JPEG", exif=exif),
        "JPEG profile": encode(picture, "JPEG", icc_profile=bytes(range(256)) * 40),
        "JPEG pages": encode(picture, "MPO", **frames[0]),
        "PNG RGB": encode(picture, "PNG"),
        "PNG palette": encode(palette, "PNG", transparency=bytes(range(0, 200, 5))),
        "PNG gray 16 bits": encode(Image.fromarray(wide), "PNG"),
        "PNG gray alpha": encode(picture.convert("LA"), "PNG"),
        "PNG 1 bit": encode(gray.convert("1"), "PNG"),
        "PNG RGBA turned": encode(translucent, "PNG", exif=exif),
        "PNG interlaced": _interlaced_png(np.asarray(picture)),
        "PNG animated": encode(picture, "PNG", **frames[1]),
        "WebP lossy": encode(picture, "WEBP", quality=80),
        "WebP lossless": encode(picture, "WEBP", lossless=True),
        "WebP alpha": encode(translucent, "WEBP", exif=exif),
        "WebP animated": encode(picture, "WEBP", **frames[2]),
        "BMP RGB": encode(picture, "BMP"),
        "BMP palette": encode(palette, "BMP"),
        "BMP 1 bit": encode(gray.convert("1"), "BMP"),
        "BMP RGBA": encode(translucent, "BMP"),
        "BMP RLE8": _rle8_bmp(np.asarray(gray)),
        "TIFF plain": encode(picture, "TIFF"),
        "TIFF pages": encode(picture, "TIFF", **frames[3]),
        "TIFF big": encode(picture, "TIFF", big_tiff=True),
        "TIFF gray 16 bits": encode(Image.fromarray(wide), "TIFF"),
        "TIFF group 4": encode(gray.convert("1"), "TIFF", compression="group4"),
        "TIFF turned": encode(picture, "TIFF", exif=exif),
        "GIF plain": encode(palette, "GIF"),
        "GIF animated": encode(
            palette, "GIF", save_all=True, append_images=[make_picture(2).quantize(30)], transparency=3
        ),
        "AVIF": encode(picture, "AVIF", quality=70, speed=10),
        "AVIF alpha": encode(translucent, "AVIF", quality=50, speed=10, exif=exif),
    }
    for compression in ("lzw", "adobe_deflate", "packbits", "jpeg", "lzma", "zstd"):
        name = {"lzw": "tiff_lzw", "adobe_deflate": "tiff_adobe_deflate"}.get(compression, compression)
        files[f"TIFF {compression}"] = encode(picture, "TIFF", compression=name)
    return files


def make_good_images() -> dict[str, bytes]:
    """Return good files in different formats, whose pictures differ enough for a network to tell them apart."""
    colors = {"red": (220, 40, 40), "green": (40, 170, 60), "blue": (40, 70, 220), "white": (235, 235, 235)}
    pictures = {name: make_picture(10 + index, color) for index, (name, color) in enumerate(colors.items())}
    return {
        "red JPEG": encode(pictures["red"], "JPEG", quality=90),
        "green PNG": encode(pictures["green"], "PNG"),
        "blue WebP": encode(pictures["blue"], "WEBP", lossless=True),
        "white BMP": encode(pictures["white"], "BMP"),
    }


def _interlaced_png(image: npt.NDArray[np.uint8]) -> bytes:
    """Return a PNG file of the seven Adam7 passes, unfiltered."""
    lines = (line for y, x, down, right in _ADAM7 for line in image[y::down, x::right])
    height, width, _ = image.shape
    return make_png(height, width, b"".join(b"\0" + line.tobytes() for line in lines), interlaced=True)


def _rle8_bmp(gray: npt.NDArray[np.uint8]) -> bytes:
    """Return a run-length encoded BMP file of 256 grays, from the bottom up."""
    height, width = gray.shape
    rows = []
    for row in gray[::-1]:
        runs = bytearray()
        for value in row:
            if runs and runs[-1] == value and runs[-2] < 255:
                runs[-2] += 1
            else:
                runs += bytes((1, int(value)))
        rows.append(bytes(runs) + b"\0\0")
    body = b"".join(rows) + b"\0\1"
    palette = b"".join(bytes((value, value, value, 0)) for value in range(256))
    offset = 14 + 40 + len(palette)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(body), 2835, 2835, 256, 0)
    return b"BM" + struct.pack("<IHHI", offset + len(body), 0, 0, offset) + info + palette + body
