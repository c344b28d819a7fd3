"""Images in memory, encoded to travel: as PNG, which keeps every pixel, or as JPEG, which is smaller and faster."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Final, Literal, get_args

from mlcls_client.errors import InputError, InvalidRequestError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL import Image

ArrayFormat = Literal["png", "jpeg"]
"""How images travel that the client has to encode: `png` without loss, `jpeg` in high quality."""

# Modes that a PNG file holds as they are.
_PNG_MODES: Final = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})
# No chroma subsampling: colors of small things stay where they are.
_JPEG_OPTIONS: Final = {"quality": 95, "subsampling": 0}
_MAX_JPEG_SIDE: Final = 65500


def check_array_format(array_format: object) -> None:
    """Refuse what is no `ArrayFormat`.

    Raises:
        InvalidRequestError: Neither `png` nor `jpeg`.
    """
    if array_format not in get_args(ArrayFormat):
        raise InvalidRequestError(f"expected array_format to be one of {get_args(ArrayFormat)}, got {array_format!r}")


def encode_bgr_array(pixels: npt.NDArray[np.uint8], array_format: ArrayFormat = "png") -> bytes:
    """Encode an array.

    Args:
        pixels: (H, W, 3) uint8 BGR, as PaddleX and OpenCV have it.
        array_format: How.

    Raises:
        InputError: Another shape or type.
    """
    import numpy as np
    from PIL import Image

    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or 0 in pixels.shape:
        raise InputError(
            f"expected an array (H, W, 3) uint8 BGR with at least one pixel, got {pixels.shape} {pixels.dtype}"
        )
    return encode_image(Image.fromarray(np.ascontiguousarray(pixels[:, :, ::-1])), array_format)


def encode_pil_image(image: Image.Image, array_format: ArrayFormat = "png") -> bytes:
    """Encode a PIL image, turned upright as its EXIF orientation says.

    Raises:
        InputError: The image cannot be decoded or has no pixel.
    """
    from PIL import ImageOps

    if 0 in image.size:
        raise InputError(f"expected a PIL image with at least one pixel, got (height, width) {image.size[::-1]}")
    try:
        upright = ImageOps.exif_transpose(image)
        return encode_image(upright if upright.mode in _PNG_MODES else upright.convert("RGB"), array_format)
    except (OSError, ValueError) as error:
        raise InputError(f"a PIL image of mode {image.mode} cannot be encoded: {error}") from error


def encode_image(image: Image.Image, array_format: ArrayFormat = "png") -> bytes:
    """Encode an image of a mode that PNG has.

    What JPEG has no form for (16 bits per channel, sides above 65,500 pixels) becomes PNG in any case; alpha is
    dropped, as the server drops it.
    """
    buffer = io.BytesIO()
    if array_format == "jpeg" and image.mode != "I;16" and max(image.size) <= _MAX_JPEG_SIDE:
        flat = image if image.mode in ("L", "RGB") else image.convert("L" if image.mode in ("1", "LA") else "RGB")
        flat.save(buffer, format="JPEG", **_JPEG_OPTIONS)
    else:
        # Level 1: a tenth of the time of the default for files that are a few percent larger.
        image.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
