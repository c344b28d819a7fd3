"""The same picture by any way in: the pixels are those that the server reads from the file's bytes.

The server and the offline tools decode with the same function, so what is compared is what the client sends.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from mlcls.images.decoding import decode_image
from mlcls_client.inputs.sources import iterate_sources
from support.image_kinds import make_kinds
from support.quiet_http import served_folder

KINDS = make_kinds()
SUFFIXES = {"JPEG": "jpg", "PNG": "png", "WebP": "webp", "BMP": "bmp", "TIFF": "tiff", "GIF": "gif", "AVIF": "avif"}
# What cv2, and so PaddleX, does not read: it has no array to give.
WITHOUT_ARRAY = ("GIF", "AVIF")
# Pillow keeps 8 of 16 bits of a color, and divides by alpha what the file has multiplied.
ROUNDED_BY_PILLOW = {"TIFF RGB 16 bits": 1, "TIFF RGBA 16 bits": 1, "TIFF RGB multiplied by its alpha": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("kinds")
    for name, data in KINDS.items():
        (path / file_name(name)).write_bytes(data)
    return path


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with served_folder(folder) as url:
        yield url


def file_name(kind: str) -> str:
    return "".join(filter(str.isalnum, kind)) + "." + SUFFIXES[kind.split()[0]]


def loaded(image: Image.Image) -> Image.Image:
    """An image whose file is closed."""
    image.load()
    return image


WAYS: dict[str, Callable[[Path, str, bytes], Any]] = {
    "path": lambda path, url, data: path,
    "URL": lambda path, url, data: url,
    "bytes": lambda path, url, data: data,
    "open file": lambda path, url, data: io.BytesIO(data),
    "PIL image of a path": lambda path, url, data: Image.open(path),
    "PIL image of bytes, loaded": lambda path, url, data: loaded(Image.open(io.BytesIO(data))),
    "array": lambda path, url, data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_the_same_pixels_by_every_way(kind: str, way: str, folder: Path, address: str) -> None:
    data = KINDS[kind]
    given = WAYS[way](folder / file_name(kind), f"{address}/{file_name(kind)}", data)
    if given is None:
        assert way == "array"
        assert kind.split()[0] in WITHOUT_ARRAY or kind.split()[-1] in ("lzma", "zstd", "bits")
        return
    source = next(iterate_sources(given))
    difference = decode_image(source.read()).astype(int) - decode_image(data)
    assert np.abs(difference).max() <= (ROUNDED_BY_PILLOW.get(kind, 0) if way.startswith("PIL") else 0)
