"""Twenty varied image files.

They are made from the two photos in scikit-learn, so nothing is downloaded and the repository needs no images. Contents
differ visibly: a model that tells images apart gives them different scores. With the same version of Pillow, the files
are the same on every machine, byte for byte. PaddleX's file reader reads all of them.
"""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageChops, ImageFilter, ImageOps
from sklearn.datasets import load_sample_image

from mlcls.images.photos import photo_crops

_BICUBIC = Image.Resampling.BICUBIC
_ORIENTATION = 0x0112


def write_samples(folder: Path) -> list[Path]:
    """Write the samples.

    Args:
        folder: Where they go; created if missing.

    Returns:
        The twenty paths, sorted; the suffix of each names its format.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, (image, options) in _make_samples().items():
        path = folder / name
        image.save(path, **options)
        paths.append(path)
    return sorted(paths)


def write_photos(folder: Path, count: int, seed: int = 0, suffixes: tuple[str, ...] = ("png",)) -> list[Path]:
    """Write photos that differ visibly, in turn in each of the formats; their names sort in the order given."""
    paths = []
    for index, crop in enumerate(photo_crops(count, seed)):
        paths.append(folder / f"{index:02}.{suffixes[index % len(suffixes)]}")
        cv2.imwrite(str(paths[-1]), crop[:, :, ::-1])
    return paths


def encode(image: npt.NDArray[Any] | Image.Image, format_name: str, **options: Any) -> bytes:
    """Encode an image, or an `(H, W, 3)` or `(H, W)` uint8 array, with Pillow."""
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, format_name, **options)
    return buffer.getvalue()


def make_png(height: int, width: int, content: bytes, interlaced: int = 0) -> bytes:
    """Return an 8-bit RGB PNG file whose IDAT chunk has the given content, whole or not."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, interlaced)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in ((b"IHDR", header), (b"IDAT", content), (b"IEND", b""))
    )


def encode_lossless_jpeg(pixels: npt.NDArray[np.uint8], bits: int = 8) -> bytes:
    """Encode `(H, W, channels)` with predictor 1 and Huffman codes of 5 bits: ITU-T T.81, annex H."""
    height, width, channels = pixels.shape
    values = pixels.astype(int)
    left = np.empty_like(values)
    left[:, 1:], left[1:, 0], left[0, 0] = values[:, :-1], values[:-1, 0], 1 << (bits - 1)
    code = ""
    for step in (values - left).ravel().tolist():
        size = abs(step).bit_length()
        code += f"{size:05b}" + (f"{step if step > 0 else step + (1 << size) - 1:0{size}b}" if size else "")
    code += "1" * (-len(code) % 8)
    scan = int(code, 2).to_bytes(len(code) // 8, "big").replace(b"\xff", b"\xff\0")

    def segment(marker: int, content: bytes) -> bytes:
        return bytes((0xFF, marker)) + struct.pack(">H", len(content) + 2) + content

    frame = struct.pack(">BHHB", bits, height, width, channels) + b"".join(bytes((n, 0x11, 0)) for n in range(channels))
    start = bytes([channels]) + b"".join(bytes((n, 0)) for n in range(channels)) + b"\1\0\0"
    table = bytes([0, 0, 0, 0, 0, 17, *[0] * 11, *range(17)])
    return b"\xff\xd8" + segment(0xC3, frame) + segment(0xC4, table) + segment(0xDA, start) + scan + b"\xff\xd9"


TiffTags = dict[int, int | list[int] | None]


def make_tiff(tags: TiffTags, content: bytes) -> bytes:
    """Return a TIFF file of one page of one strip; see `make_tiff_pages`."""
    return make_tiff_pages([(tags, [content])])


def make_tiff_pages(pages: list[tuple[TiffTags, list[bytes]]], order: str = "<") -> bytes:
    """Return a TIFF file of pages of 16 x 24 with these tags and strips, or tiles where the tags have their width.

    A tag that is None points to the first strip.
    """
    data = bytearray((b"II*\0" if order == "<" else b"MM\0*") + bytes(4))
    pointer_at = 4
    for tags, parts in pages:
        offsets = [len(data) + sum(map(len, parts[:index])) for index in range(len(parts))]
        data += b"".join(parts)
        places, sizes = (324, 325) if 322 in tags else (273, 279)
        basic: TiffTags = {256: 24, 257: 16, 259: 1, 262: 1, 278: 16, places: offsets, sizes: [*map(len, parts)]}
        entries = b""
        for tag, value in sorted((basic | tags).items()):
            numbers = value if isinstance(value, list) else [offsets[0] if value is None else value]
            field = struct.pack(f"{order}{len(numbers)}I", *numbers)
            if len(numbers) > 1:
                field, data = struct.pack(f"{order}I", len(data)), data + field
            entries += struct.pack(f"{order}HHI", tag, 4, len(numbers)) + field
        struct.pack_into(f"{order}I", data, pointer_at, len(data))
        data += struct.pack(f"{order}H", len(entries) // 12) + entries
        pointer_at = len(data)
        data += bytes(4)
    return bytes(data)


def with_cv2(data: bytes) -> npt.NDArray[Any]:
    """Decode as PaddleX's reader does: the reference."""
    return cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def forbid_cv2(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if cv2 decodes this file, whole or continued; it may still decode the probe of an orientation."""
    decode = cv2.imdecode

    def watch(content: npt.NDArray[np.uint8], flags: int) -> Any:
        assert not content.tobytes().startswith(data)
        return decode(content, flags)

    monkeypatch.setattr(cv2, "imdecode", watch)


def oriented(value: int) -> bytes:
    """Return EXIF data with only an orientation."""
    exif = Image.Exif()
    exif[_ORIENTATION] = value
    return exif.tobytes()


def _make_samples() -> dict[str, tuple[Image.Image, dict[str, Any]]]:
    china = Image.fromarray(load_sample_image("china.jpg"))  # (427, 640, 3)
    flower = Image.fromarray(load_sample_image("flower.jpg"))  # (427, 640, 3)
    return {
        "china.jpg": (china, {"quality": 95}),
        "flower_444.jpg": (flower, {"quality": 90, "subsampling": "4:4:4"}),
        "tiny_32x24.jpg": (_crop(flower, 0.3, 0.2, 0.8, 0.75).resize((32, 24), _BICUBIC), {"quality": 92}),
        "large_2000x1500.jpg": (_mosaic(china, flower).resize((2000, 1500), _BICUBIC), {"quality": 85}),
        "panorama_1600x200.jpg": (_panorama(china, flower), {"quality": 88, "subsampling": "4:2:2"}),
        "portrait_427x640.jpg": (flower.transpose(Image.Transpose.ROTATE_90), {"quality": 80}),
        "exif_orientation_6.jpg": (
            ImageOps.mirror(_crop(china, 0.1, 0.0, 0.7, 0.7)),
            {"quality": 90, "exif": oriented(6)},
        ),
        "gray.jpg": (ImageOps.grayscale(_crop(china, 0.4, 0.3, 1.0, 1.0)), {"quality": 90}),
        "progressive_sunset.jpg": (_tint(china, (255, 110, 40)), {"quality": 85, "progressive": True}),
        "exact_448x448.jpg": (_crop(flower, 0.25, 0.1, 0.85, 0.95).resize((448, 448), _BICUBIC), {"quality": 93}),
        "odd_333x217.jpg": (
            _roll_channels(_crop(china, 0.0, 0.4, 0.6, 1.0)).resize((333, 217), _BICUBIC),
            {"quality": 70, "subsampling": "4:2:0"},
        ),
        "night.jpg": (_tint(china.transpose(Image.Transpose.ROTATE_180), (30, 45, 120)), {"quality": 90}),
        "double_exposure.png": (Image.blend(china, ImageOps.flip(flower), 0.5), {}),
        "gray.png": (ImageOps.invert(ImageOps.grayscale(flower)), {}),
        "rgba.png": (_with_alpha(_crop(flower, 0.0, 0.0, 0.5, 1.0)), {}),
        "palette.png": (ImageOps.posterize(_crop(china, 0.0, 0.0, 0.6, 0.6), 2).quantize(24), {}),
        "edges.png": (ImageOps.invert(china.filter(ImageFilter.FIND_EDGES)), {}),
        "negative.webp": (ImageOps.invert(china), {"quality": 85}),
        "mosaic_300x300.bmp": (_mosaic(flower, china).resize((300, 300), _BICUBIC), {}),
        "difference.tiff": (ImageChops.difference(flower, ImageOps.mirror(china)), {"compression": "tiff_lzw"}),
    }


def _crop(image: Image.Image, left: float, top: float, right: float, bottom: float) -> Image.Image:
    """Cut out a box given in fractions of the width and the height."""
    width, height = image.size
    return image.crop((round(left * width), round(top * height), round(right * width), round(bottom * height)))


def _mosaic(first: Image.Image, second: Image.Image) -> Image.Image:
    """Return four tiles: one image, the other, and both flipped."""
    width, height = first.size
    mosaic = Image.new("RGB", (2 * width, 2 * height))
    mosaic.paste(first, (0, 0))
    mosaic.paste(_roll_channels(second), (width, 0))
    mosaic.paste(ImageOps.flip(second), (0, height))
    mosaic.paste(ImageOps.invert(ImageOps.mirror(first)), (width, height))
    return mosaic


def _panorama(first: Image.Image, second: Image.Image) -> Image.Image:
    panorama = Image.new("RGB", (1600, 200))
    for index, image in enumerate((second, ImageOps.mirror(first), first, ImageOps.flip(second))):
        panorama.paste(_crop(image, 0.0, 0.25, 1.0, 0.72).resize((400, 200), _BICUBIC), (400 * index, 0))
    return panorama


def _roll_channels(image: Image.Image) -> Image.Image:
    red, green, blue = image.split()
    return Image.merge("RGB", (green, blue, red))


def _tint(image: Image.Image, color: tuple[int, int, int]) -> Image.Image:
    return ImageChops.multiply(image, Image.new("RGB", image.size, color))


def _with_alpha(image: Image.Image) -> Image.Image:
    """Add an alpha channel that rises from transparent at the top to opaque at the bottom."""
    width, height = image.size
    ramp = np.repeat(np.linspace(0, 255, height).astype(np.uint8)[:, None], width, axis=1)
    image = image.copy()
    image.putalpha(Image.fromarray(ramp))
    return image
