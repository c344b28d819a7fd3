"""Photos for benchmarks, cut from the sample photos: all different, and the same in every run."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from mlcls.images.photos import photo_crops

# Height and width of each size class, and how many photos it has.
_CLASSES: Final = {"small": ((240, 320), 8), "medium": ((480, 640), 8), "large": ((3000, 4000), 2)}

# How often each size class is sent, relative to the others.
IMAGE_MIX: Final = "small=3,medium=6,large=1"

# Heights and widths of photos that a web service gets, in a mixed order: four small, ten medium and two large ones.
# With larger ones, a window that happens to get one more of them would differ from the next.
_WEB_SIZES: Final = (
    *((480, 640), (240, 320), (480, 640), (1200, 1600), (480, 640), (240, 320), (480, 640), (480, 640)),
    *((480, 640), (240, 320), (480, 640), (1200, 1600), (480, 640), (240, 320), (480, 640), (480, 640)),
)
# Their description in reports.
WEB_PHOTOS: Final = "16 JPEG photos: four of 320x240, ten of 640x480, two of 1600x1200"


def write_uniform_photos(folder: Path, count: int, height: int, width: int, seed: int) -> list[Path]:
    """Write JPEG photos of one size.

    Args:
        folder: Where they go; created if missing.
        count: Number of photos.
        height: Pixels.
        width: Pixels.
        seed: Seed of the choice of crops; the same seed gives the same files.
    """
    return _write(folder, photo_crops(count, seed), height, width)


def write_size_classes(folder: Path, seed: int = 0) -> None:
    """Write JPEG photos of 320x240, 640x480 and 4000x3000 into `small`, `medium` and `large`.

    Args:
        folder: Where they go.
        seed: See `write_uniform_photos`.
    """
    crops = photo_crops(sum(count for _, count in _CLASSES.values()), seed)
    for name, (size, count) in _CLASSES.items():
        own, crops = crops[:count], crops[count:]
        _write(folder / name, own, *size)


def write_web_photos(folder: Path, seed: int = 0) -> list[Path]:
    """Write `WEB_PHOTOS` and return them in the order to send them in.

    Args:
        folder: Where they go.
        seed: See `write_uniform_photos`.
    """
    crops = photo_crops(len(_WEB_SIZES), seed)
    return [
        _write(folder / f"{index:02}", [crop], *size)[0]
        for index, (crop, size) in enumerate(zip(crops, _WEB_SIZES, strict=True))
    ]


def _write(folder: Path, crops: Iterable[npt.NDArray[np.uint8]], height: int, width: int) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, crop in enumerate(crops):
        photo = Image.fromarray(np.ascontiguousarray(crop)).resize((width, height), Image.Resampling.LANCZOS)
        paths.append(folder / f"{index:04}.jpg")
        photo.save(paths[-1], quality=90)
    return paths
