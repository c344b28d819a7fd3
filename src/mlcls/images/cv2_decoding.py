"""Calls cv2's decoder: the one place where its errors and its order of channels are known."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from mlcls.images.faults import broken


def decode_with_cv2(data: bytes, name: str, flags: int = cv2.IMREAD_COLOR) -> npt.NDArray[np.uint8]:
    """Decode a file of a format that cv2 reads, and whose header was checked: cv2 believes whatever that says.

    Args:
        data: The whole file.
        name: The format, for errors.
        flags: cv2's, which give three channels of 8 bits.

    Returns:
        `(H, W, 3)` uint8 RGB, contiguous, EXIF orientation applied to JPEG, PNG and TIFF.

    Raises:
        ImageError: cv2 cannot decode it.
    """
    try:
        image: Any = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise broken(name, data, f"cv2 says {' '.join(str(error).split())}", "undecodable") from None
    if image is None:
        raise broken(name, data, "cv2 cannot decode it", "undecodable")
    picture: Any = cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)
    return picture  # type: ignore[no-any-return]
