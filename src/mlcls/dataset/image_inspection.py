"""Decode every image of a dataset on all cores, and report those that cannot be used."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

from mlcls.base.threads import map_ahead
from mlcls.errors import ImageError
from mlcls.images.decoding import decode_image
from mlcls.images.settings import DEFAULT_IMAGE_SETTINGS

# A thread may need half a gigabyte for a picture of the largest size.
_MAX_THREADS: Final = 16
# Images that are decoded ahead of the result that is taken, for each thread.
_IMAGES_AHEAD: Final = 4


class ImageFinding(NamedTuple):
    """The result of decoding one image.

    Attributes:
        digest: SHA-256 of its size and pixels, the same for copies in other files and formats; empty for a fault.
        kind: Short name of what is wrong; empty if nothing is.
        fault: What is wrong.
    """

    digest: bytes
    kind: str = ""
    fault: str = ""


def inspect_images(root: Path, names: Sequence[str]) -> dict[str, ImageFinding]:
    """Decode images, named by their paths relative to a folder, as for a model; show a progress bar on a terminal."""
    from tqdm import tqdm

    threads = min(len(os.sched_getaffinity(0)), _MAX_THREADS)  # decoders work without Python's global lock
    with ThreadPoolExecutor(threads, "mlcls-images") as pool:
        found = map_ahead(pool, _inspect_image, (root / name for name in names), _IMAGES_AHEAD * threads)
        progress = tqdm(found, total=len(names), desc="opening images", unit="image", leave=False, disable=None)
        return dict(zip(names, progress, strict=True))


def _inspect_image(path: Path) -> ImageFinding:
    try:
        if path.exists() and not path.is_file():  # such as a FIFO, on which a read would wait
            return ImageFinding(b"", "unreadable-image", "expected an image file, got something that is not a file")
        with path.open("rb") as file:
            data = file.read(DEFAULT_IMAGE_SETTINGS.max_bytes + 1)
    except FileNotFoundError:
        hint = "; write paths with /" if "\\" in str(path) else ""
        return ImageFinding(b"", "missing-image", f"expected an image file, but it does not exist{hint}")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        return ImageFinding(b"", "unreadable-image", f"expected an image file, got one that cannot be read: {reason}")
    try:
        pixels = decode_image(data)
    except ImageError as error:
        return ImageFinding(b"", "broken-image", str(error).removeprefix("image: ").removesuffix("."))
    digest = hashlib.sha256(repr(pixels.shape).encode())
    digest.update(pixels.data)
    return ImageFinding(digest.digest())
