"""PDF and TIFF files: one image per page, each rendered when its turn comes.

The rules are those of PaddleX's readers (`paddlex/inference/utils/io/readers.py`, `utils/pdf_rendering.py`). A PDF page
is drawn at twice its size in points, or smaller if it would have too many pixels. A TIFF page is the result of Pillow's
conversion to RGB. Pages count from 0, even if there is only one.
"""

from __future__ import annotations

import abc
import importlib
import io
import math
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from mlcls_client.base.files import mapped_read_errors
from mlcls_client.base.text import end_sentence
from mlcls_client.errors import InputError
from mlcls_client.inputs.encoding import ArrayFormat, encode_image

if TYPE_CHECKING:
    from PIL import Image

PDF_SUFFIXES: Final = frozenset({".pdf"})
TIFF_SUFFIXES: Final = frozenset({".tif", ".tiff"})
PAGED_SUFFIXES: Final = PDF_SUFFIXES | TIFF_SUFFIXES
_SIGNATURES: Final = {b"%PDF-": ".pdf", b"II*\0": ".tif", b"MM\0*": ".tif"}

PDF_RENDER_SCALE: Final = 2.0
PDF_MIN_RENDER_SCALE: Final = 0.1
MAX_PAGE_PIXELS: Final = 178_956_970

# PDFium is not thread-safe, not even with one document per thread.
_PDFIUM_LOCK: Final = threading.RLock()


def find_paged_suffix(content: bytes) -> str | None:
    """Return the suffix of the paged format that begins like this; None for any other file."""
    return next((suffix for start, suffix in _SIGNATURES.items() if content.startswith(start)), None)


def open_pages(name: str, suffix: str, content: bytes | None = None, array_format: ArrayFormat = "png") -> PageFile:
    """Make the reader of a file with pages; nothing is opened yet.

    Args:
        name: Path of the file, for error messages too.
        suffix: One of `PAGED_SUFFIXES`, which decides the format.
        content: The file in memory; None to read it from its path.
        array_format: How to encode the pages.
    """
    return (PdfFile if suffix in PDF_SUFFIXES else TiffFile)(name, content, array_format)


class PageFile(abc.ABC):
    """A file with pages; thread-safe. It stays open from the first page that is read to the last."""

    _kind = ""

    def __init__(self, name: str, content: bytes | None, array_format: ArrayFormat) -> None:
        """Make a reader; see `open_pages`."""
        self._name = name
        self._content = content
        self._array_format = array_format
        self._lock = threading.Lock()
        self._document: Any = None
        self._last_index = -1
        self._unread = 0

    def count(self) -> int:
        """Return the number of pages.

        Raises:
            InputError: The file cannot be read or has no page; for a PDF file, pypdfium2 is not installed.
        """
        with self._lock:
            try:
                self._open()
            finally:
                self._close()
        if self._last_index < 0:
            raise InputError(f"Expected at least one page in {self._name!r}, got none.")
        self._unread = self._last_index + 1
        return self._unread

    def read(self, page_index: int) -> bytes:
        """Return one page, encoded.

        Args:
            page_index: Number of the page, from 0.

        Raises:
            InputError: The file or this page cannot be read.
        """
        with self._lock:
            self._unread -= 1
            try:
                if self._document is None:
                    self._open()
                page = self._render(page_index)
            except InputError:
                self._close()
                raise
            except Exception as error:  # decoders raise whatever a broken file leads them to
                self._close()
                raise InputError(end_sentence(f"Cannot read page {page_index} of {self._name!r}: {error}")) from error
            # Threads may read the last page before the others.
            if self._unread <= 0:
                self._close()
        return encode_image(page, self._array_format)

    def close(self) -> None:
        """Close the file; the next page opens it again."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        document, self._document = self._document, None
        if document is not None:
            self._close_document(document)

    def _open(self) -> None:
        with mapped_read_errors(self._name):
            # The document closes it.
            file = Path(self._name).open("rb") if self._content is None else io.BytesIO(self._content)  # noqa: SIM115
        try:
            self._document, self._last_index = self._open_document(file)
        except InputError:
            file.close()
            raise
        except Exception as error:
            file.close()
            raise InputError(end_sentence(f"Cannot read {self._name!r} as {self._kind}: {error}")) from error

    @abc.abstractmethod
    def _open_document(self, file: BinaryIO) -> tuple[Any, int]:
        """Return the document, which owns the file, and the number of its last page."""

    @abc.abstractmethod
    def _close_document(self, document: Any) -> None: ...

    @abc.abstractmethod
    def _render(self, page_index: int) -> Image.Image: ...


class PdfFile(PageFile):
    """The pages of a PDF file, with forms and annotations."""

    _kind = "a PDF file"

    def _open_document(self, file: BinaryIO) -> tuple[Any, int]:
        try:
            pypdfium2: Any = importlib.import_module("pypdfium2")
        except ModuleNotFoundError as error:
            raise InputError(
                f"Cannot read {self._name!r}: PDF files need pypdfium2, which is not installed. "
                "Install the extra `pdf`: pip install 'mlcls-client[pdf]'."
            ) from error
        with _PDFIUM_LOCK:
            document = pypdfium2.PdfDocument(file, autoclose=True)
            document.init_forms()
            return document, len(document) - 1

    def _close_document(self, document: Any) -> None:
        with _PDFIUM_LOCK:
            document.close()

    def _render(self, page_index: int) -> Image.Image:
        with _PDFIUM_LOCK:
            page = self._document[page_index]
            try:
                width, height = page.get_size()
                bitmap = page.render(scale=find_render_scale(height, width))
                try:
                    # Copies: the bitmap's memory goes with the bitmap.
                    image: Image.Image = bitmap.to_pil().convert("RGB")
                    return image
                finally:
                    bitmap.close()
            finally:
                page.close()


class TiffFile(PageFile):
    """The pages of a TIFF file."""

    _kind = "a TIFF file"

    def _open_document(self, file: BinaryIO) -> tuple[Any, int]:
        from PIL import Image

        image = Image.open(file)
        return (image, file), getattr(image, "n_frames", 1) - 1

    def _close_document(self, document: Any) -> None:
        image, file = document
        image.close()
        file.close()

    def _render(self, page_index: int) -> Image.Image:
        image, _ = self._document
        image.seek(page_index)
        page: Image.Image = image.convert("RGB")
        return page


def find_render_scale(height: float, width: float) -> float:
    """Return pixels per point for a PDF page: 2, or fewer to keep the page within `MAX_PAGE_PIXELS`.

    Args:
        height: Height of the page, in points.
        width: Width of the page, in points.

    Raises:
        InputError: The page has no area, or is too large even at the smallest scale, 0.1.
    """
    if height <= 0 or width <= 0:
        raise InputError(f"Expected a page with an area, got (height, width) {(height, width)} points.")

    def fits(scale: float) -> bool:
        return math.ceil(height * scale) * math.ceil(width * scale) <= MAX_PAGE_PIXELS

    if fits(PDF_RENDER_SCALE):
        return PDF_RENDER_SCALE
    if not fits(PDF_MIN_RENDER_SCALE):
        raise InputError(
            f"Expected a page of at most {MAX_PAGE_PIXELS} pixels at {PDF_MIN_RENDER_SCALE:g} pixels per point, "
            f"got (height, width) {(height, width)} points."
        )
    good, bad = PDF_MIN_RENDER_SCALE, PDF_RENDER_SCALE
    while bad - good > 1e-9:
        middle = (good + bad) / 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good
