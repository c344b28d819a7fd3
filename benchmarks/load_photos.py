"""Photos of three size classes for load tests, made from the sample photos: all different."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from PIL import Image

from mlcls.sample_photos import photo_crops

#: Width and height of each size class, and how many photos it has.
_CLASSES: Final = {"small": ((320, 240), 8), "medium": ((640, 480), 8), "large": ((4000, 3000), 2)}

#: How often each class is sent, relative to the others.
IMAGE_MIX: Final = "small=3,medium=6,large=1"


def write_size_classes(folder: Path, seed: int = 0) -> None:
    """Writes the photos as JPEG files into `small`, `medium` and `large`.

    Args:
        folder: Where to.
        seed: The same seed gives the same photos.
    """
    crops = iter(photo_crops(sum(count for _, count in _CLASSES.values()), seed))
    for name, (size, count) in _CLASSES.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            Image.fromarray(next(crops)).resize(size).save(folder / name / f"{number}.jpg", quality=88)
