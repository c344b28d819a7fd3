"""Encoding of images in memory, so that the server sees the pixels that it would read from their file.

PNG keeps every pixel; JPEG is smaller and faster. The server decodes as PaddleX does, with OpenCV, which reads some
pixels of TIFF files otherwise than those of PNG files: it multiplies them by their alpha, for example. So a PIL image
of such pixels that was opened from a TIFF file is sent as one.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, Final, Literal

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
# Modes whose pixels OpenCV reads otherwise from TIFF files, or rejects there.
_TIFF_MODES: Final = frozenset({"LA", "RGBA", "CMYK", "YCbCr", "LAB", "I", "F"})
_EXTRA_SAMPLES: Final = 338  # TIFF's tag that says what alpha means; without it, OpenCV ignores alpha
# Formats whose 16-bit gray Pillow may open as 32-bit integers.
_GRAY_16_FORMATS: Final = frozenset({"PNG", "PPM"})
# No chroma subsampling: small colored things stay sharp.
_JPEG_OPTIONS: Final = {"quality": 95, "subsampling": 0}
_MAX_JPEG_SIDE: Final = 65500


def encode_bgr_array(pixels: npt.NDArray[np.uint8], array_format: ArrayFormat = "png") -> bytes:
    """Encode an array (H, W, 3) uint8 BGR, as in PaddleX and OpenCV, (H, W, 4) with alpha, which is dropped, or gray.

    Raises:
        InputError: It has another shape or type, or no pixel.
    """
    import numpy as np
    from PIL import Image

    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    if pixels.ndim not in (2, 3) or channels not in (1, 3, 4) or pixels.dtype != np.uint8 or 0 in pixels.shape:
        raise InputError(
            "Expected an array (H, W, 3) uint8 BGR with at least one pixel, or (H, W, 4) BGRA or (H, W) gray, got "
            f"{pixels.shape} {pixels.dtype}."
        )
    plain = pixels.reshape(pixels.shape[:2]) if channels == 1 else pixels[:, :, 2::-1]
    return encode_image(Image.fromarray(np.ascontiguousarray(plain)), array_format)


def encode_pil_image(image: Image.Image, array_format: ArrayFormat = "png") -> bytes:
    """Encode a PIL image, upright where the server turns its file.

    Raises:
        InputError: It cannot be decoded, has no pixel, or its numbers are no colors.
    """
    from PIL import ImageOps

    if 0 in image.size:
        raise InputError(f"Expected a PIL image with at least one pixel, got (height, width) {image.size[::-1]}.")
    try:
        image.load()  # Pillow turns a TIFF file when it reads it
        # the server, like OpenCV, does not turn WebP files
        upright = image if image.format == "WEBP" else ImageOps.exif_transpose(image)
        if _is_read_as_tiff(image):
            return _encode_tiff(upright)
        return encode_image(_to_png_mode(upright, image.format), array_format)
    except (OSError, ValueError) as error:
        raise InputError(end_sentence(f"Cannot encode a PIL image of mode {image.mode}: {error}")) from error


def _is_read_as_tiff(image: Image.Image) -> bool:
    tags: Any = getattr(image, "tag_v2", ())
    has_plain_alpha = image.mode == "RGBA" and _EXTRA_SAMPLES not in tags
    return image.format == "TIFF" and image.mode in _TIFF_MODES and not has_plain_alpha


def _to_png_mode(image: Image.Image, image_format: str | None) -> Image.Image:
    """Convert to a mode that PNG has, with the server's own formula for CMYK.

    Raises:
        InputError: Nothing says which of its numbers is white.
    """
    from PIL import Image

    if image.mode in _PNG_MODES:
        return image
    if image.mode.startswith("I;16") or (image.mode == "I" and image_format in _GRAY_16_FORMATS):
        return image.convert("I").convert("I;16")
    if image.mode in ("I", "F"):
        raise InputError(
            f"Expected a PIL image of colors, got mode {image.mode}, where nothing says which number is white; "
            "convert it to mode L or RGB."
        )
    return Image.fromarray(_cmyk_to_rgb(image)) if image.mode == "CMYK" else image.convert("RGB")


def _cmyk_to_rgb(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Convert to (H, W, 3) uint8 RGB as OpenCV converts JPEG files (`icvCvt_CMYK2BGR_8u_C4C3R`)."""
    import numpy as np

    inks = np.asarray(image).astype(np.uint16)
    white = 255 - inks[:, :, 3:]
    rgb: npt.NDArray[np.uint8] = (white - (inks[:, :, :3] * white >> 8)).astype(np.uint8)
    return rgb


def _encode_tiff(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="TIFF", compression="tiff_adobe_deflate", tiffinfo={})
    return buffer.getvalue()


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
