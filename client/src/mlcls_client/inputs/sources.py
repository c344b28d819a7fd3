"""The input of `predict` as a lazy stream of encoded images.

Files are sent byte for byte, and a TIFF file with several pages as one file for each: the server decodes them. Arrays,
PIL images, the pages of PDF files, and formats that PaddleX reads and the server does not (PBM, PGM, PPM, Sun raster)
are encoded as PNG, which keeps every pixel, or as JPEG.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, TypeAlias

from mlcls_client.base.files import decoding_reason, mapped_read_errors
from mlcls_client.base.text import end_sentence
from mlcls_client.errors import InputError
from mlcls_client.inputs.encoding import ArrayFormat, encode_bgr_array, encode_pil_image
from mlcls_client.inputs.fetch import DEFAULT_FETCH_LIMITS, FetchLimits, fetch_url, is_url, url_file_name
from mlcls_client.inputs.pages import PAGED_SUFFIXES, PageFile, find_paged_suffix

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL import Image

# Formats that PaddleX reads and the server does not.
CONVERTED_SUFFIXES: Final = frozenset({".pbm", ".pgm", ".ppm", ".pnm", ".sr", ".ras"})

# First bytes of these.
_CONVERTED_SIGNATURE: Final = re.compile(rb"P[1-6]\s|\x59\xa6\x6a\x95")

# PaddleX's list, and more formats of the server: GIF, AVIF, and other suffixes of JPEG.
IMAGE_SUFFIXES: Final = (
    frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".gif", ".avif"})
    | PAGED_SUFFIXES
    | CONVERTED_SUFFIXES
)


_UNNAMED: Final = "file from memory"


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


ImageInput: TypeAlias = (
    "str | os.PathLike[str] | bytes | BinaryIO | npt.NDArray[np.uint8] | Image.Image | ImageSource | "
    "Iterable[ImageInput]"
)
"""The path of a file or folder, an http(s) URL, the bytes of an image file, such a file opened in binary mode, an array
(H, W, 3) uint8 BGR, a PIL image, or an iterable of these. All give the pixels that the server reads from the file."""


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

    Raises:
        InputError: Something in the input has an unsupported type.

    Examples:
        >>> [source.input_path for source in iterate_sources(["photo.png", "photos/"])]
        ['photo.png', 'photos/img2.png', 'photos/img10.png']
    """
    import numpy as np
    from PIL import Image

    if isinstance(inputs, ImageSource):
        yield inputs
    elif isinstance(inputs, str | os.PathLike):
        path = os.fspath(inputs)
        if is_url(path):
            read = partial(fetch_url, path, fetch_limits)
            yield from _named_sources(path, _suffix(url_file_name(path)), read, array_format, in_memory=True)
        elif os.path.isdir(path):
            yield from _folder_sources(path, array_format)
        else:
            yield from _file_sources(path, array_format)
    elif isinstance(inputs, bytes | bytearray | memoryview) or hasattr(inputs, "read"):
        content = _read_content(inputs)
        suffix = ".pnm" if _CONVERTED_SIGNATURE.match(content) else find_paged_suffix(content)
        yield from _named_sources(None, suffix, lambda: content, array_format, in_memory=True)
    elif isinstance(inputs, np.ndarray):
        yield ImageSource(None, partial(encode_bgr_array, inputs, array_format))
    elif isinstance(inputs, Image.Image):
        yield ImageSource(None, partial(encode_pil_image, inputs, array_format))
    elif isinstance(inputs, Iterable) and not isinstance(inputs, dict):
        for item in inputs:
            yield from iterate_sources(item, fetch_limits, array_format)
    else:
        raise InputError(
            "Expected a path, a URL, the bytes of an image file, an open binary file, an array (H, W, 3) uint8 BGR, a "
            f"PIL image or a list of these, got {type(inputs).__name__}."
        )


def _read_content(content: Any) -> bytes:
    """Return the bytes of an image file, or of an open one from where it stands."""
    if isinstance(content, bytes | bytearray | memoryview):
        return bytes(content)
    found = content.read()
    if not isinstance(found, bytes):
        raise InputError(f"Expected a file opened in binary mode, got one that reads {type(found).__name__}.")
    return found


def count_images(paths: Iterable[str]) -> int | None:
    """Count the images of files, folders and URLs by their names.

    Returns:
        The number; None if a file with pages is among them, because only opening it would tell how many.
    """
    count = 0
    for path in paths:
        names = [url_file_name(path)] if is_url(path) else _list_images(path) if os.path.isdir(path) else [path]
        for name in names:
            if _suffix(str(name)) in PAGED_SUFFIXES:
                return None
            count += 1
    return count


def _folder_sources(folder: str, array_format: ArrayFormat) -> Iterator[ImageSource]:
    empty = True
    for path in _list_images(folder):
        empty = False
        yield from _file_sources(path, array_format) if isinstance(path, str) else [_failing_source(folder, str(path))]
    if empty:
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        yield _failing_source(folder, f"Expected images ({suffixes}) in folder {folder!r}, found none.")


def _list_images(folder: str) -> Iterator[str | InputError]:
    """Go through a folder; only its names and those of the folders above it are in memory."""
    try:
        with os.scandir(folder) as entries:
            found = [
                (_natural_key(entry.name), entry.path, is_folder)
                for entry in entries
                # Links to folders are not searched: they may form a loop.
                if (is_folder := entry.is_dir(follow_symlinks=False)) or _suffix(entry.name) in IMAGE_SUFFIXES
            ]
    except OSError as error:
        yield InputError(f"Cannot list folder {folder!r}: {error.strerror or error}.")
        return
    for _, path, is_folder in sorted(found):
        yield from _list_images(path) if is_folder else [path]


def _file_sources(path: str, array_format: ArrayFormat) -> Iterator[ImageSource]:
    return _named_sources(path, _suffix(path), partial(_read_file, path), array_format)


def _named_sources(
    name: str | None, suffix: str, read: Callable[[], bytes], array_format: ArrayFormat, in_memory: bool = False
) -> Iterator[ImageSource]:
    """Make the sources of one file; one with pages is kept in memory or read page by page from its path."""
    if suffix in CONVERTED_SUFFIXES:
        yield ImageSource(name, lambda: _convert(name or _UNNAMED, read(), array_format))
    elif suffix in PAGED_SUFFIXES:
        try:
            pages = PageFile(name or _UNNAMED, suffix, read() if in_memory else None, array_format)
        except InputError as error:
            yield _failing_source(name, str(error))
        else:
            for page_index in range(pages.page_count):
                yield ImageSource(name, partial(pages.read, page_index), page_index)
    else:
        yield ImageSource(name, read)


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _convert(name: str, content: bytes, array_format: ArrayFormat) -> bytes:
    """Convert an image from a format that the server does not read."""
    from PIL import Image

    try:
        return encode_pil_image(Image.open(io.BytesIO(content)), array_format)
    except InputError:
        raise
    except Exception as error:  # decoders raise whatever a broken file leads them to
        raise InputError(end_sentence(f"Cannot read {name!r} as an image: {decoding_reason(error)}")) from error


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
