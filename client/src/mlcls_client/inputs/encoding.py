"""Encoding of images in memory: PNG, which keeps every pixel, or JPEG, which is smaller and faster."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Final, Literal

from mlcls_client.base.text import end_sentence
from mlcls_client.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL import Image

ArrayFormat = Literal["png", "jpeg"]
"""How the client encodes images: `png` without loss, `jpeg` in high quality."""

# Modes that PNG has.
_PNG_MODES: Final = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})
# No chroma subsampling: small colored things stay sharp.
_JPEG_OPTIONS: Final = {"quality": 95, "subsampling": 0}
_MAX_JPEG_SIDE: Final = 65500


def encode_bgr_array(pixels: npt.NDArray[np.uint8], array_format: ArrayFormat = "png") -> bytes:
    """Encode an array (H, W, 3) uint8 BGR, as in PaddleX and OpenCV; any other is an InputError."""
    import numpy as np
    from PIL import Image

    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or 0 in pixels.shape:
        raise InputError(
            f"Expected an array (H, W, 3) uint8 BGR with at least one pixel, got {pixels.shape} {pixels.dtype}."
        )
    return encode_image(Image.fromarray(np.ascontiguousarray(pixels[:, :, ::-1])), array_format)


def encode_pil_image(image: Image.Image, array_format: ArrayFormat = "png") -> bytes:
    """Encode a PIL image, turned upright; one that cannot be decoded or has no pixel is an InputError."""
    from PIL import ImageOps

    if 0 in image.size:
        raise InputError(f"Expected a PIL image with at least one pixel, got (height, width) {image.size[::-1]}.")
    try:
        upright = ImageOps.exif_transpose(image)
        return encode_image(upright if upright.mode in _PNG_MODES else upright.convert("RGB"), array_format)
    except (OSError, ValueError) as error:
        raise InputError(end_sentence(f"Cannot encode a PIL image of mode {image.mode}: {error}")) from error


def encode_image(image: Image.Image, array_format: ArrayFormat = "png") -> bytes:
    """Encode an image of a mode that PNG has.

    Images that JPEG cannot hold (16 bits per channel, sides above 65,500 pixels) always become PNG. JPEG drops alpha,
    as the server does.
    """
    buffer = io.BytesIO()
    if array_format == "jpeg" and image.mode != "I;16" and max(image.size) <= _MAX_JPEG_SIDE:
        flat = image if image.mode in ("L", "RGB") else image.convert("L" if image.mode in ("1", "LA") else "RGB")
        flat.save(buffer, format="JPEG", **_JPEG_OPTIONS)
    else:
        # Level 1: a tenth of the time of the default for files that are a few percent larger.
        image.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
