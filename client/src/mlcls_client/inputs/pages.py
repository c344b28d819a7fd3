"""PDF and TIFF files: one image per page, each read when its turn comes.

A PDF page is drawn as PaddleX draws it (`paddlex/inference/utils/pdf_rendering.py`): at twice its size in points, or
smaller if it would have too many pixels. A TIFF page is sent as it is in the file, so that it is read as all TIFF files
are. Pages count from 0, even if there is only one.
"""

from __future__ import annotations

import importlib
import io
import math
import threading
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from mlcls_client.base.files import decoding_reason, mapped_read_errors
from mlcls_client.base.text import end_sentence
from mlcls_client.errors import InputError
from mlcls_client.inputs.encoding import ArrayFormat, encode_image
from mlcls_client.inputs.tiff import TIFF_SIGNATURES, TiffDocument

if TYPE_CHECKING:
    from PIL import Image

PDF_RENDER_SCALE: Final = 2.0
PDF_MIN_RENDER_SCALE: Final = 0.1
MAX_PAGE_PIXELS: Final = 178_956_970

# PDFium is not thread-safe, not even with one document per thread.
_PDFIUM_LOCK: Final = threading.RLock()


class PdfDocument:
    """An open PDF file, drawn with its forms and annotations."""

    def __init__(self, file: BinaryIO) -> None:
        pypdfium2: Any = importlib.import_module("pypdfium2")
        with _PDFIUM_LOCK:
            self._document = pypdfium2.PdfDocument(file, autoclose=True)
            self._document.init_forms()
            self.page_count = len(self._document)

    def read(self, page_index: int) -> Image.Image:
        """Draw a page, RGB."""
        with _PDFIUM_LOCK, closing(self._document[page_index]) as page:
            width, height = page.get_size()
            with closing(page.render(scale=find_render_scale(height, width))) as bitmap:
                # A copy: the bitmap's memory goes with the bitmap.
                image: Image.Image = bitmap.to_pil().convert("RGB")
                return image

    def close(self) -> None:
        """Close the document and its file."""
        with _PDFIUM_LOCK:
            self._document.close()


# By suffixes, which decide how a file is read, and by first bytes.
_KINDS: Final[dict[str, type[PdfDocument] | type[TiffDocument]]] = {
    ".pdf": PdfDocument,
    ".tif": TiffDocument,
    ".tiff": TiffDocument,
}
_SIGNATURES: Final = {b"%PDF": ".pdf", **dict.fromkeys(TIFF_SIGNATURES, ".tif")}
PAGED_SUFFIXES: Final = frozenset(_KINDS)


def find_paged_suffix(content: bytes) -> str:
    """Return the suffix of the paged format that begins like this; an empty one for any other file."""
    return _SIGNATURES.get(content[:4], "")


class PageFile:
    """A file with pages; thread-safe. It stays open from the first page that is read to the last."""

    def __init__(self, name: str, suffix: str, content: bytes | None, array_format: ArrayFormat) -> None:
        """Open the file to count its pages; without `content` it is read from the path `name`.

        Raises:
            InputError: The file cannot be read or has no page; for a PDF file, pypdfium2 is not installed.
        """
        self._name = name
        self._kind = _KINDS[suffix]
        self._content = content
        self._array_format = array_format
        self._lock = threading.Lock()
        document = self._open()
        document.close()
        self._document: PdfDocument | TiffDocument | None = None
        self.page_count = self._unread = document.page_count
        if self.page_count < 1:
            raise InputError(f"Expected at least one page in {name!r}, got none.")

    def read(self, page_index: int) -> bytes:
        """Return one page, encoded; a file or page that cannot be read is an InputError."""
        page = None
        with self._lock:
            self._unread -= 1
            try:
                self._document = self._document or self._open()
                page = self._document.read(page_index)
            except InputError:
                raise
            except Exception as error:  # decoders raise whatever a broken file leads them to
                raise InputError(end_sentence(f"Cannot read page {page_index} of {self._name!r}: {error}")) from error
            finally:
                # Threads may read the last page before the others.
                if self._document is not None and (page is None or self._unread <= 0):
                    self._document.close()
                    self._document = None
        return page if isinstance(page, bytes) else encode_image(page, self._array_format)

    def _open(self) -> PdfDocument | TiffDocument:
        with mapped_read_errors(self._name):
            # The document closes it.
            file = Path(self._name).open("rb") if self._content is None else io.BytesIO(self._content)  # noqa: SIM115
        try:
            return self._kind(file)
        except ModuleNotFoundError as error:
            file.close()
            raise InputError(
                f"Cannot read {self._name!r}: PDF files need pypdfium2, which is not installed. "
                "Install the extra `pdf`: pip install 'mlcls-client[pdf]'."
            ) from error
        except Exception as error:
            file.close()
            kind = "a PDF file" if self._kind is PdfDocument else "a TIFF file"
            raise InputError(end_sentence(f"Cannot read {self._name!r} as {kind}: {decoding_reason(error)}")) from error


def find_render_scale(height: float, width: float) -> float:
    """Return pixels per point for a PDF page of this size in points: 2, or fewer to keep it within `MAX_PAGE_PIXELS`.

    Raises:
        InputError: The page has no area, or is too large even at the smallest scale, 0.1.
    """

    def fits(scale: float) -> bool:
        return math.ceil(height * scale) * math.ceil(width * scale) <= MAX_PAGE_PIXELS

    if height <= 0 or width <= 0 or not fits(PDF_MIN_RENDER_SCALE):
        raise InputError(
            f"Expected a page with an area, of at most {MAX_PAGE_PIXELS} pixels at {PDF_MIN_RENDER_SCALE:g} pixels per "
            f"point, got (height, width) {(height, width)} points."
        )
    if fits(PDF_RENDER_SCALE):
        return PDF_RENDER_SCALE
    good, bad = PDF_MIN_RENDER_SCALE, PDF_RENDER_SCALE
    while bad - good > 1e-9:
        middle = (good + bad) / 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good
