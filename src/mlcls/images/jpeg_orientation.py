"""Which way cv2 turns a JPEG file: asked of cv2 itself.

cv2 reads any APP1 segment from its seventh byte on as a TIFF directory, nearly whatever stands there, and photos have
XMP and other things in such segments. So cv2 decodes a tiny picture that has the file's segments, which takes 20
microseconds, and what it made of that picture tells the orientation.
"""

from __future__ import annotations

from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt

from mlcls.images.cv2_decoding import decode_with_cv2

_SOI: Final = b"\xff\xd8"


def find_orientation(app1: bytes) -> int:
    """Return the EXIF orientation, 1 to 8, that cv2 applies to a file with these segments.

    Args:
        app1: The file's APP1 segments with their markers, in order.

    Raises:
        ImageError: cv2 cannot decode a file with these segments.
    """
    return _ORIENTATION_OF_LOOK[_look(decode_with_cv2(_SOI + app1 + _PROBE_FILE, "JPEG"))] if app1 else 1


def turn(picture: npt.NDArray[np.uint8], orientation: int) -> npt.NDArray[np.uint8]:
    """Apply an EXIF orientation, 1 to 8, as cv2 does: 5 to 8 exchange height and width."""
    turned: Any = picture
    if orientation in (5, 6, 7, 8):
        turned = cv2.transpose(turned)
    flips = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}
    if orientation in flips:
        turned = cv2.flip(turned, flips[orientation])
    result: npt.NDArray[np.uint8] = turned
    return result


def _look(picture: npt.NDArray[np.uint8]) -> tuple[int, int, int]:
    """Return height, and row and column of the brightest corner: another one for each orientation of the probe."""
    corners = picture[:: picture.shape[0] - 1, :: picture.shape[1] - 1, 0]
    row, column = np.unravel_index(corners.argmax(), corners.shape)
    return picture.shape[0], int(row), int(column)


def _make_probe() -> npt.NDArray[np.uint8]:
    """Make a picture of which one corner is white."""
    probe = np.zeros((16, 32, 3), np.uint8)
    probe[:8, :8] = 255
    return probe


_PROBE: Final = _make_probe()
# Without its first marker, which the segments follow.
_PROBE_FILE: Final = cv2.imencode(".jpg", _PROBE)[1].tobytes()[len(_SOI) :]
_ORIENTATION_OF_LOOK: Final = {_look(turn(_PROBE, orientation)): orientation for orientation in range(1, 9)}
