"""Decode JPEG files to the pixels of cv2, and tell which are damaged.

libjpeg-turbo decodes in simplejpeg as in cv2, to the same pixels; simplejpeg needs half the memory, and so 50 to 70% of
the time, and tells what libjpeg-turbo found wrong, which cv2 keeps to itself.

cv2 itself says which way it turns a file. It reads any APP1 segment from its seventh byte on as a TIFF directory,
nearly whatever stands there, and photos have XMP and other things in such segments. So cv2 decodes a tiny picture that
has the file's segments, which takes 20 microseconds, and what it made of that picture tells the orientation.
"""

from __future__ import annotations

import re
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg

from mlcls.images.cv2_decoding import decode_with_cv2
from mlcls.images.formats import broken
from mlcls.images.jpeg_header import JpegHeader

_SOI: Final = b"\xff\xd8"


def find_orientation(app1: bytes) -> int:
    """The EXIF orientation, 1 to 8, that cv2 applies to a file with these segments.

    Args:
        app1: The file's APP1 segments with their markers, in order.

    Raises:
        ImageError: cv2 cannot decode a file with these segments.
    """
    return _ORIENTATION_OF_LOOK[_look(decode_with_cv2(_SOI + app1 + _PROBE_FILE, "JPEG"))] if app1 else 1


def turn(picture: npt.NDArray[np.uint8], orientation: int) -> npt.NDArray[np.uint8]:
    """Applies an EXIF orientation, 1 to 8, as cv2 does: 5 to 8 exchange height and width."""
    turned: Any = picture
    if orientation in (5, 6, 7, 8):
        turned = cv2.transpose(turned)
    flips = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}
    if orientation in flips:
        turned = cv2.flip(turned, flips[orientation])
    result: npt.NDArray[np.uint8] = turned
    return result


def _look(picture: npt.NDArray[np.uint8]) -> tuple[int, int, int]:
    """Height, and row and column of the brightest corner: another one for each orientation of the probe."""
    corners = picture[:: picture.shape[0] - 1, :: picture.shape[1] - 1, 0]
    row, column = np.unravel_index(corners.argmax(), corners.shape)
    return picture.shape[0], int(row), int(column)


def _make_probe() -> npt.NDArray[np.uint8]:
    """One corner is white."""
    probe = np.zeros((16, 32, 3), np.uint8)
    probe[:8, :8] = 255
    return probe


_PROBE: Final = _make_probe()
#: Without its first marker, which the segments follow.
_PROBE_FILE: Final = cv2.imencode(".jpg", _PROBE)[1].tobytes()[len(_SOI) :]
_ORIENTATION_OF_LOOK: Final = {_look(turn(_PROBE, orientation)): orientation for orientation in range(1, 9)}


_END: Final = b"\xff\xd9"
#: Where cv2 reads a file that ends too early, libjpeg goes on with end markers, through a segment that is cut off.
_LONGEST_SEGMENT: Final = 65_536
_CMYK_CHANNELS: Final = 4
#: What libjpeg-turbo says where picture data is missing or damaged. It says more, "extraneous bytes before marker" most
#: often, of files that other programs show as they were meant; these cv2 decides about.
_DAMAGE: Final = re.compile(r"premature end|bad Huffman code|bad arithmetic code|instead of RST", re.IGNORECASE)
_CV2_REDUCTIONS: Final = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}


def decode_jpeg(data: bytes, header: JpegHeader, min_side: int | None, accept_truncated: bool) -> npt.NDArray[np.uint8]:
    """Decodes one JPEG file.

    Args:
        data: The whole file.
        header: Its header.
        min_side: Lets the file be decoded at 1/2, 1/4 or 1/8 of its size, the least at which both of its sides have so
            many pixels; None decodes all of it.
        accept_truncated: Whether to decode what is there of a truncated or damaged file, as `cv2.imread` does.

    Returns:
        `(H, W, 3)` uint8 RGB, contiguous, EXIF orientation applied.

    Raises:
        ImageError: It cannot be decoded, or is damaged and `accept_truncated` is not set.
    """
    reduction = _choose_reduction(header, min_side)
    picture, fault = _try_simplejpeg(data, header, reduction)
    if (
        fault is not None and data.find(_END, header.scan_offset) < 0
    ):  # stuffing keeps the two bytes out of picture data
        missing = broken("JPEG", data, "its end marker is missing", "truncated")
        if not header.single_scan and not accept_truncated:
            raise missing
        data += _END * (_LONGEST_SEGMENT if accept_truncated else 1)
        picture, fault = _try_simplejpeg(data, header, reduction)
        if fault is not None and not accept_truncated:
            raise missing
    if fault is not None and _DAMAGE.search(fault) and not accept_truncated:
        raise broken("JPEG", data, f"libjpeg says {fault}")
    if picture is not None:
        return turn(picture, find_orientation(header.app1))
    return decode_with_cv2(data, "JPEG", _CV2_REDUCTIONS[reduction])


def _choose_reduction(header: JpegHeader, min_side: int | None) -> int:
    """By what a file's sides are divided."""
    smaller_side = min(header.height, header.width)
    return next((factor for factor in (8, 4, 2) if min_side and smaller_side >= min_side * factor), 1)


def _try_simplejpeg(data: bytes, header: JpegHeader, reduction: int) -> tuple[npt.NDArray[np.uint8] | None, str | None]:
    """The picture where simplejpeg gives that of cv2, and what libjpeg-turbo finds wrong with the file."""
    height, width = -(-header.height // reduction), -(-header.width // reduction)
    cmyk = header.channels == _CMYK_CHANNELS
    try:
        picture: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(
            data,
            colorspace="CMYK" if cmyk else "RGB",
            min_height=height,
            min_width=width,
            min_factor=float(reduction),
        )
    except ValueError as error:
        return None, str(error)
    return (None if cmyk else picture), None
