"""Decodes JPEG files to the pixels of cv2, and tells which are damaged.

libjpeg-turbo decodes in simplejpeg as in cv2, to the same pixels; simplejpeg needs half the memory, and so 50 to 70% of
the time, and tells what libjpeg-turbo found wrong, which cv2 keeps to itself.
"""

from __future__ import annotations

import re
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg

from mlcls.images.cv2_decoding import decode_with_cv2
from mlcls.images.faults import broken
from mlcls.images.jpeg_header import JpegHeader
from mlcls.images.jpeg_orientation import find_orientation, turn

_END: Final = b"\xff\xd9"
# Where cv2 reads a file that ends too early, libjpeg goes on with end markers, through a segment that is cut off.
_LONGEST_SEGMENT: Final = 65_536
_CMYK_CHANNELS: Final = 4
# What libjpeg-turbo says where picture data is missing or damaged. It says more, "extraneous bytes before marker" most
# often, of files that other programs show as they were meant; these cv2 decides about.
_DAMAGE: Final = re.compile(r"premature end|bad Huffman code|bad arithmetic code|instead of RST", re.IGNORECASE)
_CV2_REDUCTIONS: Final = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}


def decode_jpeg(data: bytes, header: JpegHeader, min_side: int | None, accept_truncated: bool) -> npt.NDArray[np.uint8]:
    """Decode one JPEG file.

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
    """Return the picture where simplejpeg gives that of cv2, and what libjpeg-turbo finds wrong with the file."""
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
