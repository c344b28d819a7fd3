"""The input of `predict` as a lazy stream of encoded images.

Files are sent byte for byte; the server decodes them. Arrays, PIL images, the pages of PDF and TIFF files, and formats
that PaddleX reads and the server does not (PBM, PGM, PPM, Sun raster) are encoded as PNG, which keeps every pixel, or
as JPEG.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias, Union

from mlcls_client.base.files import mapped_read_errors
from mlcls_client.base.text import end_sentence
from mlcls_client.errors import InputError
from mlcls_client.inputs.encoding import ArrayFormat, encode_bgr_array, encode_pil_image
from mlcls_client.inputs.fetch import DEFAULT_FETCH_LIMITS, FetchLimits, fetch_url, is_url, url_file_name
from mlcls_client.inputs.pages import PAGED_SUFFIXES, find_paged_suffix, open_pages

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL import Image

# Formats that PaddleX reads and the server does not.
CONVERTED_SUFFIXES: Final = frozenset({".pbm", ".pgm", ".ppm", ".pnm", ".sr", ".ras"})

# PaddleX's list, and more formats of the server: GIF, and other suffixes of JPEG.
IMAGE_SUFFIXES: Final = (
    frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".gif"})
    | PAGED_SUFFIXES
    | CONVERTED_SUFFIXES
)


@dataclass(frozen=True)
class ImageSource:
    """One image to send; it is read when its turn comes.

    Attributes:
        input_path: The path or URL as given, or the path found in a folder; None for an image from memory.
        read: Returns the encoded image or raises InputError.
        page_index: Number of the page of a PDF or TIFF file, from 0; None for a plain image.
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
"""The path of a file or folder, an http(s) URL, the bytes of an image file, an array (H, W, 3) uint8 BGR, a PIL image,
or an iterable of these."""


@dataclass(frozen=True)
class _Reading:
    """How to read inputs: the limits of fetches, and the format of images that the client encodes."""

    fetch_limits: FetchLimits
    array_format: ArrayFormat


def iterate_sources(
    inputs: ImageInput, fetch_limits: FetchLimits = DEFAULT_FETCH_LIMITS, array_format: ArrayFormat = "png"
) -> Iterator[ImageSource]:
    """Go through the images of an input, in order, without opening or fetching a plain image.

    A folder is searched with all subfolders for files with an image suffix, in natural order (`img2` before `img10`). A
    file that is named itself is taken whatever its suffix. A file or URL that ends in `.pdf`, `.tif` or `.tiff`, or
    bytes that begin like such a file, give one source per page: when its turn comes, the file is opened (a URL is
    fetched, and kept in memory as long as its sources) to count the pages, which are rendered one by one as they are
    read. A missing path, a file whose pages cannot be counted, or a folder that cannot be listed or has no image gives
    one source whose `read` raises, so that one bad path need not stop the others.

    Args:
        inputs: See `ImageInput`.
        fetch_limits: Limits of fetching a URL.
        array_format: How to encode arrays, PIL images, pages and converted files.

    Raises:
        InputError: Something in the input has an unsupported type.

    Examples:
        >>> [source.input_path for source in iterate_sources(["photo.png", "photos/"])]
        ['photo.png', 'photos/img2.png', 'photos/img10.png']
    """
    return _sources(inputs, _Reading(fetch_limits, array_format))


def _sources(inputs: ImageInput, reading: _Reading) -> Iterator[ImageSource]:
    import numpy as np
    from PIL import Image

    if isinstance(inputs, ImageSource):
        yield inputs
    elif isinstance(inputs, str | os.PathLike):
        path = os.fspath(inputs)
        yield from _url_sources(path, reading) if is_url(path) else _path_sources(path, reading)
    elif isinstance(inputs, bytes | bytearray | memoryview):
        yield from _bytes_sources(bytes(inputs), reading)
    elif isinstance(inputs, np.ndarray):
        yield ImageSource(None, partial(encode_bgr_array, inputs, reading.array_format))
    elif isinstance(inputs, Image.Image):
        yield ImageSource(None, partial(encode_pil_image, inputs, reading.array_format))
    elif isinstance(inputs, Iterable) and not isinstance(inputs, dict):
        for item in inputs:
            yield from _sources(item, reading)
    else:
        raise InputError(
            "Expected a path, a URL, the bytes of an image file, an array (H, W, 3) uint8 BGR, a PIL image or a list "
            f"of these, got {type(inputs).__name__}."
        )


def count_images(paths: Iterable[str]) -> int | None:
    """Count the images of files, folders and URLs by their names.

    Returns:
        The number; None if a file with pages is among them, because only opening it would tell how many.
    """
    count = 0
    for path in paths:
        if is_url(path):
            names: Iterable[str] = [url_file_name(path)]
        elif os.path.isdir(path):
            found = (name for _, _, files in os.walk(path) for name in files)
            names = (name for name in found if _suffix(name) in IMAGE_SUFFIXES)
        else:
            names = [path]
        for name in names:
            if _suffix(name) in PAGED_SUFFIXES:
                return None
            count += 1
    return count


def _path_sources(path: str, reading: _Reading) -> Iterator[ImageSource]:
    if not os.path.isdir(path):
        yield from _file_sources(path, reading)
        return
    empty = True
    for source in _folder_sources(path, reading):
        empty = False
        yield source
    if empty:
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        yield _failing_source(path, f"Expected images ({suffixes}) in folder {path!r}, found none.")


def _folder_sources(folder: str, reading: _Reading) -> Iterator[ImageSource]:
    """Go through a folder; only its names and those of the folders above it are in memory."""
    try:
        with os.scandir(folder) as entries:
            found = [
                (entry.name, is_folder)
                for entry in entries
                if (is_folder := _is_searched(entry)) or _suffix(entry.name) in IMAGE_SUFFIXES
            ]
    except OSError as error:
        yield _failing_source(folder, f"Cannot list folder {folder!r}: {error.strerror or error}.")
        return
    found.sort(key=lambda item: _natural_key(item[0]))
    for name, is_folder in found:
        path = os.path.join(folder, name)
        yield from _folder_sources(path, reading) if is_folder else _file_sources(path, reading)


def _is_searched(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder to search. Links to folders are not: they may form a loop."""
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False


def _file_sources(path: str, reading: _Reading) -> Iterator[ImageSource]:
    suffix = _suffix(path)
    if suffix in PAGED_SUFFIXES:
        yield from _page_sources(path, suffix, reading)
    elif suffix in CONVERTED_SUFFIXES:
        yield ImageSource(path, lambda: _convert(path, _read_file(path), reading))
    else:
        yield ImageSource(path, partial(_read_file, path))


def _url_sources(url: str, reading: _Reading) -> Iterator[ImageSource]:
    suffix = _suffix(url_file_name(url))
    if suffix in PAGED_SUFFIXES:
        try:
            content = fetch_url(url, reading.fetch_limits)
        except InputError as error:
            yield _failing_source(url, str(error))
        else:
            yield from _page_sources(url, suffix, reading, content)
    elif suffix in CONVERTED_SUFFIXES:
        yield ImageSource(url, lambda: _convert(url, fetch_url(url, reading.fetch_limits), reading))
    else:
        yield ImageSource(url, partial(fetch_url, url, reading.fetch_limits))


def _bytes_sources(content: bytes, reading: _Reading) -> Iterator[ImageSource]:
    suffix = find_paged_suffix(content)
    if suffix is None:
        yield ImageSource(None, lambda: content)
    else:
        yield from _page_sources(None, suffix, reading, content)


def _page_sources(
    path: str | None, suffix: str, reading: _Reading, content: bytes | None = None
) -> Iterator[ImageSource]:
    pages = open_pages(path or "file from memory", suffix, content, reading.array_format)
    try:
        count = pages.count()
    except InputError as error:
        yield _failing_source(path, str(error))
        return
    for page_index in range(count):
        yield ImageSource(path, partial(pages.read, page_index), page_index)


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _convert(name: str, content: bytes, reading: _Reading) -> bytes:
    """Convert an image from a format that the server does not read."""
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(content))
        # Pillow reads 16-bit gray of a PGM file as 32-bit integers, and would clip them at 255.
        return encode_pil_image(image.convert("I;16") if image.mode == "I" else image, reading.array_format)
    except InputError:
        raise
    except Exception as error:  # decoders raise whatever a broken file leads them to
        raise InputError(end_sentence(f"Cannot read {name!r} as an image: {error}")) from error


def _failing_source(path: str | None, message: str) -> ImageSource:
    def fail() -> bytes:
        raise InputError(message)

    return ImageSource(path, fail)


def _read_file(path: str) -> bytes:
    with mapped_read_errors(path):
        return Path(path).read_bytes()


def _natural_key(name: str) -> tuple[tuple[int | str, ...], str]:
    """Return a key that sorts numbers in names by value, and text regardless of case; the name itself breaks ties."""
    # re.split alternates text and digits, so texts are compared with texts.
    parts = re.split(r"(\d+)", name)
    return tuple(int(part) if number % 2 else part.casefold() for number, part in enumerate(parts)), name
