"""From the bytes of an image file to pixels: the only code that decodes.

The pixels are those of PaddleX (`paddlex/inference/common/reader`), which decodes with cv2. Rules follow from that:

- What cv2 reads is what cv2 gives: EXIF orientation applied to JPEG, PNG and TIFF but not to WebP, alpha dropped.
- JPEG files are decoded by simplejpeg, to the same pixels: libjpeg-turbo decodes in both. simplejpeg needs half the
  memory, and so 50 to 70% of the time, and reports what libjpeg-turbo found wrong, which cv2 hides.
- GIF (first frame) and AVIF, which cv2 does not read, are read by Pillow in the same way. TIFF files whose compression
  cv2 lacks are decompressed by Pillow and then read by cv2.
- A truncated or damaged file is refused, as far as the damage shows: a JPEG file without its end marker if a scan is
  not whole, a PNG file without its IEND chunk. Bytes after the end are ignored.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
from collections.abc import Iterator
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, ImageOps

from mlcls.errors import ImageError
from mlcls.images.encoded_image import EncodedImage, JpegSegments, check_image, check_size, open_image, pillow_broken
from mlcls.images.formats import PNG_SIGNATURE, broken, unsupported
from mlcls.images.settings import DEFAULT_IMAGE_SETTINGS, ImageSettings
from mlcls.model.spec import ImageTransform

_PILLOW_FORMATS: Final = ("GIF", "AVIF")

_JPEG_START: Final = b"\xff\xd8"
_JPEG_END: Final = b"\xff\xd9"
# When cv2 reads a file that ends too early, libjpeg goes on with end markers, through the segment that is cut off.
_LONGEST_SEGMENT: Final = 65_536
_CMYK_CHANNELS: Final = 4
# What libjpeg-turbo says if picture data is missing or damaged. Its other warnings, most often "extraneous bytes before
# marker", are about files that other programs show correctly; for these cv2 decides.
_DAMAGE: Final = re.compile(r"premature end|bad Huffman code|bad arithmetic code|instead of RST", re.IGNORECASE)
_CV2_REDUCTIONS: Final = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}


def decode_image(
    data: bytes | memoryview, settings: ImageSettings = DEFAULT_IMAGE_SETTINGS, transform: ImageTransform | None = None
) -> npt.NDArray[np.uint8]:
    """Open, check and decode a whole image file to `(H, W, 3)` uint8 RGB, contiguous, with cv2's EXIF orientation.

    If the settings have `jpeg_oversampling`, a large JPEG file is decoded at 1/2, 1/4 or 1/8 of its size, as far as the
    network's `transform`, if given, leaves pixels to spare.

    Raises:
        ImageError: Not an image, of a format or kind that is not supported, truncated or corrupt, or over a limit;
            `reason` says which.
    """
    image = open_image(data, settings)
    check_image(image, settings)
    return decode_checked(image, settings, transform)


def decode_checked(
    image: EncodedImage, settings: ImageSettings = DEFAULT_IMAGE_SETTINGS, transform: ImageTransform | None = None
) -> npt.NDArray[np.uint8]:
    """Decode an opened image that `check_image` has accepted, as `decode_image` does.

    Raises:
        ImageError: Truncated or corrupt.
    """
    if image.jpeg is not None:
        reduction = _choose_reduction(image, settings, transform)
        return _decode_jpeg(image, image.jpeg, reduction, settings.accept_truncated)
    if image.format in _PILLOW_FORMATS:
        with _open_with_pillow(image, settings) as opened:
            return np.array(ImageOps.exif_transpose(opened).convert("RGB"))
    if image.still_chunks:
        # cv2 4.11 writes out of bounds for a frame larger than the picture; earlier versions, PaddleX's among them, do
        # not know animations
        still = PNG_SIGNATURE + b"".join(image.data[start:end] for start, end in image.still_chunks)
        return _decode_with_cv2(still, image.format)
    if image.read_by_pillow:
        return _decode_with_cv2(_decompress_tiff(image, settings), image.format)
    return _decode_with_cv2(image.data, image.format)


def _decode_with_cv2(data: bytes, name: str, flags: int = cv2.IMREAD_COLOR) -> npt.NDArray[np.uint8]:
    """Decode a file whose header was checked, because cv2 trusts it; the flags must give 3 channels of 8 bits."""
    try:
        picture: Any = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise broken(name, data, f"cv2 says {' '.join(str(error).split())}", "undecodable") from None
    if picture is None:
        raise broken(name, data, "cv2 cannot decode it", "undecodable")
    rgb: npt.NDArray[np.uint8] = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB, dst=picture)
    return rgb


@contextlib.contextmanager
def _open_with_pillow(image: EncodedImage, settings: ImageSettings) -> Iterator[Image.Image]:
    """Open a file with Pillow, whose plugins raise nearly anything; the block decodes it."""
    try:
        opened = image.pillow or Image.open(io.BytesIO(image.data), formats=(image.format,))
        check_size(opened.height, opened.width, settings)  # what Pillow will decode
        yield opened
    except ImageError:
        raise
    except Exception as error:
        raise pillow_broken(image.format, image.data, error) from None


def _decompress_tiff(image: EncodedImage, settings: ImageSettings) -> bytes:
    """Return a TIFF file's first page, upright and uncompressed, so that cv2's rules apply to the rest."""
    plain = io.BytesIO()
    with _open_with_pillow(image, settings) as opened:
        opened.load()
        opened.save(plain, "TIFF", compression="raw", tiffinfo={})
    return plain.getvalue()


def _choose_reduction(image: EncodedImage, settings: ImageSettings, transform: ImageTransform | None) -> int:
    """Return the largest divisor of a file's sides that leaves the pixels that the settings ask for."""
    # of a lossless file, libjpeg-turbo writes all pixels, beyond the end of simplejpeg's smaller array
    if transform is None or settings.jpeg_oversampling is None or (image.jpeg is not None and image.jpeg.lossless):
        return 1
    least = math.ceil(settings.jpeg_oversampling * max(transform.height, transform.width))
    return next((factor for factor in (8, 4, 2) if min(image.height, image.width) >= least * factor), 1)


def _decode_jpeg(
    image: EncodedImage, jpeg: JpegSegments, reduction: int, accept_truncated: bool
) -> npt.NDArray[np.uint8]:
    """Decode a JPEG file; with `accept_truncated`, what there is of a damaged one, as `cv2.imread` does."""
    data = image.data
    picture, fault = _try_simplejpeg(image, data, jpeg, reduction)
    # stuffing keeps the two bytes of an end marker out of picture data
    if fault is not None and data.find(_JPEG_END, jpeg.scan_offset) < 0:
        missing = broken("JPEG", data, "its end marker is missing", "truncated")
        if not jpeg.single_scan and not accept_truncated:
            raise missing
        data += _JPEG_END * (_LONGEST_SEGMENT if accept_truncated else 1)
        picture, fault = _try_simplejpeg(image, data, jpeg, reduction)
        if fault is not None and not accept_truncated:
            raise missing
    if fault is not None and _DAMAGE.search(fault) and not accept_truncated:
        raise broken("JPEG", data, f"libjpeg says {fault}")
    if picture is not None:
        return turn(picture, find_orientation(jpeg.app1))
    try:
        return _decode_with_cv2(data, "JPEG", _CV2_REDUCTIONS[reduction])
    except ImageError:
        if jpeg.lossless:
            raise unsupported("JPEG", data, "of lossless coding in other colors than RGB") from None
        raise


def _try_simplejpeg(
    image: EncodedImage, data: bytes, jpeg: JpegSegments, reduction: int
) -> tuple[npt.NDArray[np.uint8] | None, str | None]:
    """Return the picture if simplejpeg gives that of cv2, and what libjpeg-turbo finds wrong with the file."""
    cmyk = jpeg.channels == _CMYK_CHANNELS
    try:
        picture: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(
            data,
            colorspace="CMYK" if cmyk else "RGB",
            min_height=-(-image.height // reduction),
            min_width=-(-image.width // reduction),
            min_factor=float(reduction),
        )
    except ValueError as error:
        return None, str(error)
    return (None if cmyk else picture), None


def find_orientation(app1: bytes) -> int:
    """Return the EXIF orientation, 1 to 8, that cv2 applies to a JPEG file with these APP1 segments, by asking cv2.

    cv2 reads any APP1 segment from its seventh byte on as a TIFF directory, almost whatever is there, and photos have
    XMP and other data in such segments. So cv2 decodes a tiny picture with the file's segments, which takes 20
    microseconds, and the result shows the orientation.

    Raises:
        ImageError: cv2 cannot decode a file with these segments.
    """
    return _ORIENTATION_OF_LOOK[_look(_decode_with_cv2(_JPEG_START + app1 + _PROBE_FILE, "JPEG"))] if app1 else 1


def turn(picture: npt.NDArray[np.uint8], orientation: int) -> npt.NDArray[np.uint8]:
    """Apply an EXIF orientation, 1 to 8, as cv2 does: 5 to 8 exchange height and width."""
    turned: Any = cv2.transpose(picture) if orientation >= 5 else picture
    flip = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}.get(orientation)
    result: npt.NDArray[np.uint8] = turned if flip is None else cv2.flip(turned, flip)
    return result


def _look(picture: npt.NDArray[np.uint8]) -> tuple[int, int, int]:
    """Return height, and row and column of the brightest corner: different for each orientation of the probe."""
    corners = picture[:: picture.shape[0] - 1, :: picture.shape[1] - 1, 0]
    row, column = np.unravel_index(corners.argmax(), corners.shape)
    return picture.shape[0], int(row), int(column)


# A picture with one white corner.
_PROBE: Final = np.zeros((16, 32, 3), np.uint8)
_PROBE[:8, :8] = 255
# Without its first marker; the segments go between.
_PROBE_FILE: Final = cv2.imencode(".jpg", _PROBE)[1].tobytes()[len(_JPEG_START) :]
_ORIENTATION_OF_LOOK: Final = {_look(turn(_PROBE, orientation)): orientation for orientation in range(1, 9)}
