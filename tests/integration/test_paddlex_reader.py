"""Pixel for pixel what PaddleX's own reader gives, for files of every kind."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlcls.images.decoding import decode_image
from support.image_kinds import make_kinds

# Kinds that PaddleX 3.7 with its cv2 4.10 cannot read and mlcls can (docs/reference/input.md).
MORE_THAN_PADDLEX = {
    "WebP animated",
    "GIF plain",
    "GIF animated",
    "AVIF",
    "AVIF alpha",
    "AVIF turned",
    "TIFF lzma",
    "TIFF zstd",
    "TIFF CMYK zstd",
    "TIFF RGBA lzma",
    "TIFF gray 16 bits zstd",
    "TIFF 2 bits",
    "TIFF 4 bits",
}


def test_every_kind_of_file_is_read_as_paddlex_reads_it(
    ask_paddlex: Callable[..., dict[str, Any]], sample_images: list[Path], tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    files = make_kinds() | {path.name: path.read_bytes() for path in sample_images}
    for name, data in files.items():
        (folder / name.replace(":", "")).write_bytes(data)
    answers = ask_paddlex("read", folder)
    expected = {name: answers[name.replace(":", "")] for name in files}
    assert {name for name, answer in expected.items() if answer is None} == MORE_THAN_PADDLEX
    for name, data in files.items():
        pixels = decode_image(data)
        if expected[name] is not None:
            found = {"shape": list(pixels.shape), "sha256": hashlib.sha256(pixels.tobytes()).hexdigest()}
            assert found == expected[name], name
