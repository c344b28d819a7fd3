"""Real photos that come with an installed package: scikit-learn ships two (`china.jpg`, `flower.jpg`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mlcls.errors import ImageError, MissingExtraError
from mlcls.model.spec import ImageTransform

# Suffixes of photos in a folder.
PHOTO_SUFFIXES: Final = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".png",
    ".webp",
    ".bmp",
    ".dib",
    ".tif",
    ".tiff",
    ".gif",
    ".avif",
)


def sample_photo_paths() -> list[Path]:
    """Return the paths of the sample photos.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    from importlib.util import find_spec

    spec = find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise MissingExtraError("train", "scikit-learn")
    return [Path(spec.origin).parent / "datasets" / "images" / name for name in ("china.jpg", "flower.jpg")]


def load_photos(paths: Sequence[Path]) -> list[npt.NDArray[np.uint8]]:
    """Decode photos, and those in folders among the paths: (H, W, 3) uint8 RGB each.

    Raises:
        ImageError: A photo cannot be read or decoded; the text names its path.
    """
    from mlcls.images.decoding import decode_image

    photos = []
    for path in list_photos(paths):
        data = _read_photo(path)
        try:
            photos.append(decode_image(data))
        except ImageError as error:
            raise ImageError(f"{path}: {error}", error.reason) from None
    return photos


def photo_pixels(
    paths: Sequence[Path], transform: ImageTransform, sample_count: int, seed: int = 0
) -> npt.NDArray[np.uint8]:
    """Return photos at the size of a network's input: (N, H, W, 3) uint8 RGB.

    If there are no paths, crops of the sample photos take their place: `photo_crops(sample_count, seed)`.

    Raises:
        ImageError: See `load_photos`.
    """
    from mlcls.images.transforms import resize_image

    photos = load_photos(paths) or photo_crops(sample_count, seed)
    return np.stack([resize_image(photo, transform) for photo in photos])


class PhotoFiles(Sequence[bytes]):
    """Encoded photos in files; each is read on access, which may raise an `ImageError`."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """List the files among the paths, and the photos in the folders among them.

        Raises:
            ImageError: A folder has no photo.
        """
        self._paths = list_photos(paths)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: Any) -> Any:
        found = self._paths[index]
        return _read_photo(found) if isinstance(found, Path) else [_read_photo(path) for path in found]


def photo_images(paths: Sequence[Path], sample_count: int, seed: int = 0) -> Sequence[bytes]:
    """Return encoded photos: the given files, and those in given folders, or else crops of the sample photos as PNG.

    Raises:
        ImageError: See `PhotoFiles`.
    """
    import cv2

    if paths:
        return PhotoFiles(paths)
    return [cv2.imencode(".png", crop[:, :, ::-1])[1].tobytes() for crop in photo_crops(sample_count, seed)]


def list_photos(paths: Sequence[Path]) -> list[Path]:
    """Return the files among the paths, and the photos in the folders among them, at any depth, in order.

    Raises:
        ImageError: A folder has no photo.
    """
    files: list[Path] = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        found = sorted(file for file in path.rglob("*") if file.suffix.lower() in PHOTO_SUFFIXES and file.is_file())
        if not found:
            raise ImageError(f"{path}: expected a folder with photos ({', '.join(PHOTO_SUFFIXES)}), got one without.")
        files += found
    return files


def photo_crops(count: int, seed: int = 0) -> list[npt.NDArray[np.uint8]]:
    """Return different crops of the sample photos, some mirrored, some with permuted channels.

    The same seed gives the same crops: (H, W, 3) uint8 RGB of 0.3 to 1 times the photo's sides, of each photo in turn.
    """
    photos = load_photos(sample_photo_paths())
    generator = np.random.default_rng(seed)
    crops = []
    for index in range(count):
        photo = photos[index % len(photos)]
        height, width = (int(side * generator.uniform(0.3, 1.0)) for side in photo.shape[:2])
        top = int(generator.integers(0, photo.shape[0] - height + 1))
        left = int(generator.integers(0, photo.shape[1] - width + 1))
        crop = photo[top : top + height, left : left + width]
        if generator.random() < 0.5:
            crop = crop[:, ::-1]
        if generator.random() < 0.4:
            crop = crop[:, :, generator.permutation(3)]
        crops.append(np.ascontiguousarray(crop))
    return crops


def _read_photo(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: expected a photo, got a path that cannot be read: {error.strerror}.") from None
