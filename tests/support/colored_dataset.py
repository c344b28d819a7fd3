"""A small `MLClsDataset`: gray noise with squares, and a label for each color of square."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

COLORS = {"red": (200, 30, 30), "green": (30, 170, 40), "blue": (40, 60, 210)}


def write_colored_dataset(folder: Path, train: int, val: int | None = None, size: int = 40) -> Path:
    """Write the dataset.

    Args:
        folder: Where it goes; created if missing.
        train: Number of training images.
        val: Number of validation images; None uses the training images, to see whether a network can memorize them.
        size: Height and width of the images.

    Returns:
        The folder.
    """
    (folder / "images").mkdir(parents=True)
    (folder / "label.txt").write_text("".join(f"{index} {name}\n" for index, name in enumerate(COLORS)))
    generator = np.random.default_rng(0)
    lines = [_write_image(folder, number, size, generator) for number in range(train + (val or 0))]
    (folder / "train.txt").write_text("".join(lines[:train]))
    (folder / "val.txt").write_text("".join(lines[train:] if val else lines))
    return folder


def _write_image(folder: Path, number: int, size: int, generator: np.random.Generator) -> str:
    present = generator.integers(0, 2, len(COLORS))
    pixels = generator.integers(108, 148, (size, size, 3)).astype(np.uint8)
    for index in generator.permutation(len(COLORS)):
        if present[index]:
            # each color has its own band, so that none covers another
            top = int(index) * size // len(COLORS)
            left = int(generator.integers(0, size // 2))
            pixels[top : top + size // len(COLORS), left : left + size // 2] = list(COLORS.values())[int(index)]
    name = f"images/{number:03}.png"
    Image.fromarray(pixels).save(folder / name)
    return f"{name}\t{','.join(map(str, present))}\n"
