"""What `predict` takes, turned into a lazy stream of encoded images.

A file travels byte for byte as it is; the server decodes it. Arrays, PIL images, the pages of PDF and TIFF files, and
the formats of PaddleX that the server does not read (PBM, PGM, PPM, Sun raster) are encoded as PNG, which keeps every
pixel.
"""

import io
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, Union

from mlcls_client.encoding import encode_bgr_array, encode_pil_image
from mlcls_client.errors import InputError
from mlcls_client.fetch import DEFAULT_FETCH_LIMITS, FetchLimits, fetch_url, is_url, url_file_name
from mlcls_client.files import mapped_read_errors
from mlcls_client.pages import PDF_SUFFIXES, TIFF_SUFFIXES, open_pages

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL import Image

# What PaddleX reads and the server does not.
CONVERTED_SUFFIXES = frozenset({".pbm", ".pgm", ".ppm", ".pnm", ".sr", ".ras"})

# PaddleX's list, and further formats of the served contract: GIF, and other names of JPEG.
IMAGE_SUFFIXES = (
    frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".gif"})
    | TIFF_SUFFIXES
    | PDF_SUFFIXES
    | CONVERTED_SUFFIXES
)


@dataclass(frozen=True)
class ImageSource:
    """One image that is to be sent; it is read when its turn comes.

    Attributes:
        input_path: the path or URL as given, or the path found in the given folder; None for an image from memory.
        read: returns the encoded image, raises InputError.
        page_index: number of the page of a PDF or TIFF file, from 0; None for a plain image.
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
"""A path of a file or a folder, an http(s) URL, the bytes of an image file, an array (H, W, 3) uint8 BGR, a PIL image,
or any iterable of these."""


def iterate_sources(inputs: ImageInput, fetch_limits: FetchLimits = DEFAULT_FETCH_LIMITS) -> Iterator[ImageSource]:
    """Go through the images of an input, in order; no plain image is opened or fetched.

    A folder is searched with all its subfolders for files with an image suffix, in natural order (`img2` before
    `img10`). A file that is named itself is taken whatever its suffix. A file or URL that ends in `.pdf`, `.tif` or
    `.tiff` gives one source per page: when its turn comes it is opened (a URL: fetched, and kept in memory while its
    sources are) to count the pages, which are rendered one by one as they are read. A path that is not there, a file
    whose pages cannot be counted, or a folder without an image, gives one source whose `read` raises, so that one bad
    path need not stop the others.

    Args:
        inputs: see `ImageInput`.
        fetch_limits: of the fetch of a URL.

    Raises:
        InputError: something in the input is of an unsupported type.
    """
    import numpy as np
    from PIL import Image

    if isinstance(inputs, ImageSource):
        yield inputs
    elif isinstance(inputs, str | os.PathLike):
        path = os.fspath(inputs)
        yield from _url_sources(path, fetch_limits) if is_url(path) else _path_sources(path)
    elif isinstance(inputs, bytes | bytearray | memoryview):
        yield ImageSource(None, partial(bytes, inputs))
    elif isinstance(inputs, np.ndarray):
        yield ImageSource(None, partial(encode_bgr_array, inputs))
    elif isinstance(inputs, Image.Image):
        yield ImageSource(None, partial(encode_pil_image, inputs))
    elif isinstance(inputs, Iterable) and not isinstance(inputs, dict):
        for item in inputs:
            yield from iterate_sources(item, fetch_limits)
    else:
        raise InputError(
            "expected a path, a URL, the bytes of an image file, an array (H, W, 3) uint8 BGR, a PIL image or a list "
            f"of these, got {type(inputs).__name__}"
        )


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
            yield from _file_sources(name)
    else:
        yield from _file_sources(path)


def _file_sources(path: str) -> Iterator[ImageSource]:
    suffix = _suffix(path)
    if suffix in TIFF_SUFFIXES | PDF_SUFFIXES:
        yield from _page_sources(path, suffix)
    elif suffix in CONVERTED_SUFFIXES:
        yield ImageSource(path, lambda: _convert(path, _read_file(path)))
    else:
        yield ImageSource(path, partial(_read_file, path))


def _url_sources(url: str, limits: FetchLimits) -> Iterator[ImageSource]:
    suffix = _suffix(url_file_name(url))
    if suffix in TIFF_SUFFIXES | PDF_SUFFIXES:
        try:
            content = fetch_url(url, limits)
        except InputError as error:
            yield _failing_source(url, str(error))
        else:
            yield from _page_sources(url, suffix, content)
    elif suffix in CONVERTED_SUFFIXES:
        yield ImageSource(url, lambda: _convert(url, fetch_url(url, limits)))
    else:
        yield ImageSource(url, partial(fetch_url, url, limits))


def _page_sources(path: str, suffix: str, content: bytes | None = None) -> Iterator[ImageSource]:
    pages = open_pages(path, suffix, content)
    try:
        count = pages.count()
    except InputError as error:
        yield _failing_source(path, str(error))
        return
    for page_index in range(count):
        yield ImageSource(path, partial(pages.read, page_index), page_index)


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _convert(name: str, content: bytes) -> bytes:
    """Encode an image that the server does not read as PNG."""
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(content))
        # Pillow has 16-bit grey of a PGM file as 32-bit integers, and would cut them off at 255.
        return encode_pil_image(image.convert("I;16") if image.mode == "I" else image)
    except InputError:
        raise
    except Exception as error:  # decoders raise whatever a broken file leads them to
        raise InputError(f"cannot read {name!r} as an image: {error}") from error


def _failing_source(path: str, message: str) -> ImageSource:
    def fail() -> bytes:
        raise InputError(message)

    return ImageSource(path, fail)


def _read_file(path: str) -> bytes:
    with mapped_read_errors(path):
        return Path(path).read_bytes()


def _find_images(folder: str) -> list[str]:
    def stop(error: OSError) -> None:
        # os.walk leaves out what it cannot list and says nothing.
        raise error

    found = [
        os.path.join(parent, name)
        for parent, _, names in os.walk(folder, onerror=stop)
        for name in names
        if _suffix(name) in IMAGE_SUFFIXES
    ]
    return sorted(found, key=_natural_key)


def _natural_key(path: str) -> list[list[tuple[int, int, str]]]:
    """Sort numbers in names by value, folder by folder; text regardless of case, then as it is."""
    return [
        [(0, int(part), part) if part.isdecimal() else (1, 0, part.casefold()) for part in re.split(r"(\d+)", name)]
        for name in path.split(os.sep)
    ] + [[(2, 0, path)]]
