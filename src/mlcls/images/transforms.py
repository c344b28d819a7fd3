"""From the bytes of an image file to a network's input: the only resize and normalize code.

The pixels are those of PaddleX (`paddlex/inference/models/common/vision`), unless the settings have a large JPEG file
decoded at a reduced size. `mlcls.images.decoding` decodes.
"""

from __future__ import annotations

from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from mlcls.images.decoding import decode_image
from mlcls.images.settings import DEFAULT_IMAGE_SETTINGS, ImageSettings
from mlcls.model.spec import ImageTransform

_PIL_FILTERS: Final = {
    "NEAREST": Image.Resampling.NEAREST,
    "BILINEAR": Image.Resampling.BILINEAR,
    "BICUBIC": Image.Resampling.BICUBIC,
    "BOX": Image.Resampling.BOX,
    "LANCZOS4": Image.Resampling.LANCZOS,
}
_CV2_FILTERS: Final = {
    "NEAREST": cv2.INTER_NEAREST,
    "LINEAR": cv2.INTER_LINEAR,
    "BICUBIC": cv2.INTER_CUBIC,
    "AREA": cv2.INTER_AREA,
    "LANCZOS4": cv2.INTER_LANCZOS4,
}


def resize_image(image: npt.NDArray[np.uint8], transform: ImageTransform) -> npt.NDArray[np.uint8]:
    """Resize `(H, W, 3)` uint8 to the transform's size, regardless of the aspect ratio, as PaddleX's `Resize` does.

    The result is contiguous, and `image` itself if it already has that size; else it may be read-only.
    """
    height, width = transform.height, transform.width
    if image.shape[:2] == (height, width):
        return image
    if transform.resize_backend == "pil":
        resized = Image.fromarray(image).resize((width, height), _PIL_FILTERS[transform.interpolation])
        return np.asarray(resized)
    result: Any = cv2.resize(image, (width, height), interpolation=_CV2_FILTERS[transform.interpolation])
    return np.asarray(result, np.uint8)


def preprocess(
    data: bytes | memoryview, transform: ImageTransform, settings: ImageSettings = DEFAULT_IMAGE_SETTINGS
) -> npt.NDArray[np.uint8]:
    """Return `pixels`, `(height, width, 3)` uint8 RGB, of an encoded image: `decode_image`, then `resize_image`.

    Raises:
        ImageError: See `mlcls.images.decoding.decode_image`.
    """
    return resize_image(decode_image(data, settings, transform), transform)


def normalization_constants(transform: ImageTransform) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return factor and offset, each `(3,)` float32, RGB, that normalize: `pixels * alpha + beta`.

    PaddleX's `Normalize` computes both in float64 and rounds to float32 once; it does not subtract and divide.
    """
    alpha = [transform.scale / std for std in transform.std]
    beta = [-mean / std for mean, std in zip(transform.mean, transform.std, strict=True)]
    return np.array(alpha, dtype=np.float32), np.array(beta, dtype=np.float32)


def normalize(pixels: npt.NDArray[np.uint8], transform: ImageTransform) -> npt.NDArray[np.float32]:
    """Normalize `(N, H, W, 3)` uint8 RGB to `(N, 3, H, W)` float32, bit for bit as PaddleX's `Normalize`, `ToCHWImage`.

    The served graph does this itself; this function is for the original Paddle graph and for training.
    """
    alpha, beta = normalization_constants(transform)
    count, height, width, channels = pixels.shape
    normalized = np.empty((count, channels, height, width), dtype=np.float32)
    np.multiply(pixels.transpose(0, 3, 1, 2), alpha[:, None, None], out=normalized)
    normalized += beta[:, None, None]
    return normalized
