"""What `predict` takes, turned into a lazy stream of encoded images.

A file travels byte for byte as it is; the server decodes it. Arrays and PIL images are encoded as PNG, which keeps
every pixel.
"""

import io
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, Union

from mlcls_client.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL import Image

# The formats of the served contract: JPEG, PNG, WebP, BMP, TIFF, GIF.
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif"})

# Modes that a PNG file holds as they are.
_PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})


@dataclass(frozen=True)
class ImageSource:
    """One image that is to be sent; it is read when its turn comes.

    Attributes:
        input_path: the path as given, or found in the given folder; None for an image from memory.
        read: returns the encoded image, raises InputError.
        page_index: number of the page or frame, from 0; None for a plain image.
    """

    input_path: str | None
    read: Callable[[], bytes]
    page_index: int | None = None


ImageInput: TypeAlias = Union[
    str,
    "os.PathLike[str]",
    bytes,
    "npt.NDArray[np.uint8]",
    "Image.Image",
    ImageSource,
    Iterable["ImageInput"],
]
"""A path of a file or a folder, the bytes of an image file, an array (H, W, 3) uint8 BGR, a PIL image, or any
iterable of these."""


def iterate_sources(inputs: ImageInput) -> Iterator[ImageSource]:
    """Go through the images of an input, in order; no image is opened.

    A folder is searched with all its subfolders for files with an image suffix, in natural order (`img2` before
    `img10`). A file that is named itself is taken whatever its suffix. A path that is not there, or a folder without
    an image, gives one source whose `read` raises, so that one bad path need not stop the others.

    Raises:
        InputError: something in the input is of an unsupported type.
    """
    import numpy as np
    from PIL import Image

    if isinstance(inputs, ImageSource):
        yield inputs
    elif isinstance(inputs, str | os.PathLike):
        yield from _path_sources(os.fspath(inputs))
    elif isinstance(inputs, bytes | bytearray | memoryview):
        yield ImageSource(None, partial(bytes, inputs))
    elif isinstance(inputs, np.ndarray):
        yield ImageSource(None, partial(encode_bgr_array, inputs))
    elif isinstance(inputs, Image.Image):
        yield ImageSource(None, partial(encode_pil_image, inputs))
    elif isinstance(inputs, Iterable) and not isinstance(inputs, dict):
        for item in inputs:
            yield from iterate_sources(item)
    else:
        raise InputError(
            "expected a path, the bytes of an image file, an array (H, W, 3) uint8 BGR, a PIL image or a list of "
            f"these, got {type(inputs).__name__}"
        )


def encode_bgr_array(pixels: "npt.NDArray[np.uint8]") -> bytes:
    """Encode an array as PNG.

    Args:
        pixels: (H, W, 3) uint8 BGR, as PaddleX and OpenCV have it.

    Raises:
        InputError: another shape or type.
    """
    import numpy as np
    from PIL import Image

    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or 0 in pixels.shape:
        raise InputError(
            f"expected an array (H, W, 3) uint8 BGR with at least one pixel, got {pixels.shape} {pixels.dtype}"
        )
    return _to_png(Image.fromarray(np.ascontiguousarray(pixels[:, :, ::-1])))


def encode_pil_image(image: "Image.Image") -> bytes:
    """Encode a PIL image as PNG, turned upright as its EXIF orientation says.

    Raises:
        InputError: the image cannot be decoded or has no pixel.
    """
    from PIL import ImageOps

    if 0 in image.size:
        raise InputError(f"expected a PIL image with at least one pixel, got (height, width) {image.size[::-1]}")
    try:
        upright = ImageOps.exif_transpose(image)
        return _to_png(upright if upright.mode in _PNG_MODES else upright.convert("RGB"))
    except (OSError, ValueError) as error:
        raise InputError(f"a PIL image of mode {image.mode} cannot be encoded as PNG: {error}") from error


def _to_png(image: "Image.Image") -> bytes:
    buffer = io.BytesIO()
    # Level 1: a tenth of the time of the default for files that are a few percent larger.
    image.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def _path_sources(path: str) -> Iterator[ImageSource]:
    if os.path.isdir(path):
        try:
            found = _find_images(path)
        except OSError as error:
            yield _failing_source(path, f"cannot list folder {path!r}: {error.strerror or error}")
            return
        if not found:
            suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
            yield _failing_source(path, f"expected images ({suffixes}) in folder {path!r}, found none")
        for name in found:
            yield _file_source(name)
    else:
        yield _file_source(path)


def _file_source(path: str) -> ImageSource:
    return ImageSource(path, partial(_read_file, path))


def _failing_source(path: str, message: str) -> ImageSource:
    def fail() -> bytes:
        raise InputError(message)

    return ImageSource(path, fail)


def _read_file(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError as error:
        hint = "URLs are not supported, download the image first" if "://" in path else "check the path"
        raise InputError(f"expected an image file or a folder at {path!r}, there is none; {hint}") from error
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise InputError(f"cannot read {path!r}: {getattr(error, 'strerror', None) or error}") from error


def _find_images(folder: str) -> list[str]:
    def stop(error: OSError) -> None:
        # os.walk leaves out what it cannot list and says nothing.
        raise error

    found = [
        os.path.join(parent, name)
        for parent, _, names in os.walk(folder, onerror=stop)
        for name in names
        if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
    ]
    return sorted(found, key=_natural_key)


def _natural_key(path: str) -> list[list[tuple[int, int, str]]]:
    """Sort numbers in names by value, folder by folder; text regardless of case, then as it is."""
    return [
        [(0, int(part), part) if part.isdecimal() else (1, 0, part.casefold()) for part in re.split(r"(\d+)", name)]
        for name in path.split(os.sep)
    ] + [[(2, 0, path)]]
