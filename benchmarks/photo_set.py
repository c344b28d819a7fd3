"""Photos for benchmarks, cut from the sample photos: all different, and the same in every run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from mlcls.images.photos import photo_crops

# Heights and widths of photos that a web service gets, in a mixed order: four small, ten medium and two large ones.
# With larger ones, a window that happens to get one more of them would differ from the next.
WEB_SIZES: Final = 2 * (
    (480, 640),
    (240, 320),
    (480, 640),
    (1200, 1600),
    (480, 640),
    (240, 320),
    (480, 640),
    (480, 640),
)
# Their description in reports.
WEB_PHOTOS: Final = "16 JPEG photos: four of 320x240, ten of 640x480, two of 1600x1200"

# Photos of a load test, and how often each size is sent.
LOAD_SIZES: Final = (*[(240, 320)] * 8, *[(480, 640)] * 8, *[(3000, 4000)] * 2)
LOAD_MIX: Final = "320x240=3,640x480=6,4000x3000=1"


def write_photos(folder: Path, sizes: Sequence[tuple[int, int]], seed: int = 0) -> list[Path]:
    """Write JPEG photos, each into a folder named after its size (`640x480`), and return them in the given order.

    Args:
        folder: Where they go; created if missing.
        sizes: Height and width of each photo.
        seed: Seed of the choice of crops; the same seed gives the same files.
    """
    paths = []
    for index, (crop, (height, width)) in enumerate(zip(photo_crops(len(sizes), seed), sizes, strict=True)):
        path = folder / f"{width}x{height}" / f"{index:04}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photo = Image.fromarray(np.ascontiguousarray(crop)).resize((width, height), Image.Resampling.LANCZOS)
        photo.save(path, quality=90)
        paths.append(path)
    return paths
