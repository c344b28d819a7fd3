"""Photos of one size, made from the sample photos."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from mlcls.sample_photos import photo_crops


def write_uniform_photos(folder: Path, count: int, height: int, width: int, seed: int) -> list[Path]:
    """Writes different JPEG photos of one size; the same arguments give the same files.

    Args:
        folder: Where they go; it is made.
        count: How many.
        height: Pixels.
        width: Pixels.
        seed: Of the choice of crops.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, crop in enumerate(photo_crops(count, seed)):
        photo = Image.fromarray(np.ascontiguousarray(crop)).resize((width, height), Image.Resampling.LANCZOS)
        paths.append(folder / f"{index:04}.jpg")
        photo.save(paths[-1], quality=90)
    return paths
