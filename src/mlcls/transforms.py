"""From the bytes of an image file to a network's input: the only decode, resize and normalise code.

The pixels are those of PaddleX (`paddlex/inference/common/reader`, `.../models/common/vision`), which decodes with cv2.
Three rules follow from that:

- What cv2 reads is what cv2 gives: EXIF orientation applied to JPEG, PNG and TIFF but not to WebP, alpha dropped. JPEG
  files that libjpeg-turbo finds without fault and that nothing turns are decoded by simplejpeg instead, which gives the
  same pixels with half the memory, and so in 50 to 70% of the time; at any warning cv2 decides.
- GIF (first frame) and AVIF, which cv2 does not read, are read by Pillow in the same way.
- A JPEG file without its end marker is truncated, and PaddleX's picture of it partly gray (or none, with cv2 4.11): it
  is refused. Only where its one scan turns out to be whole, nothing but the marker is missing, and the picture is what
  PaddleX sees. Bytes after the end marker are no fault. A PNG file must have its IEND chunk.

Where the caller opts in, a large JPEG file is decoded at 1/2, 1/4 or 1/8 of its size; the pixels are then other ones.
"""

from __future__ import annotations

import dataclasses
import io
import math
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, ImageOps

from mlcls.errors import ImageError
from mlcls.image_header import ImageHeader, broken, pillow_broken, read_image_header, strip_png_animation
from mlcls.model_spec import ImageTransform

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
_JPEG_END: Final = b"\xff\xd9"
_PILLOW_FORMATS: Final = ("GIF", "AVIF")
_CV2_REDUCTIONS: Final = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}


@dataclasses.dataclass(frozen=True)
class ImageLimits:
    """What an image may have at most; checked before it is decoded.

    Attributes:
        max_bytes: Length of the encoded image.
        max_pixels: Height times width. While decoding, a pixel takes up to 8 bytes of memory.
        max_side: The larger one of height and width.
    """

    max_bytes: int = 32 * 1024 * 1024
    max_pixels: int = 64_000_000
    max_side: int = 20_000


DEFAULT_IMAGE_LIMITS: Final = ImageLimits()


def decode_image(
    data: bytes | memoryview, limits: ImageLimits = DEFAULT_IMAGE_LIMITS, jpeg_min_side: int | None = None
) -> npt.NDArray[np.uint8]:
    """Decodes one image to the pixels that PaddleX computes with.

    Args:
        data: A whole image file of one of :data:`mlcls.image_header.FORMATS`.
        limits: What the image may have at most.
        jpeg_min_side: Lets a JPEG file be decoded at 1/2, 1/4 or 1/8 of its size, the least at which both of its sides
            have so many pixels; None decodes all of it.

    Returns:
        `(H, W, 3)` uint8 RGB, contiguous, EXIF orientation applied as cv2 does.

    Raises:
        ImageError: No image, an unsupported format, truncated or corrupt, or over a limit.
    """
    size_bytes = memoryview(data).nbytes
    if size_bytes > limits.max_bytes:
        text = f"image: expected at most {limits.max_bytes} bytes, got {size_bytes}; send a smaller file."
        raise ImageError(text, "too_many_bytes")
    if not isinstance(data, bytes):
        data = bytes(data)
    header = read_image_header(data)
    _check_size(header.height, header.width, limits)
    if header.format == "JPEG":
        return _decode_jpeg(data, header, _jpeg_reduction(header, jpeg_min_side))
    if header.format in _PILLOW_FORMATS:
        return _decode_with_pillow(data, header, limits)
    if header.animated:
        data = strip_png_animation(data)
    return _decode_with_cv2(data, header)


def resize_image(image: npt.NDArray[np.uint8], transform: ImageTransform) -> npt.NDArray[np.uint8]:
    """Resizes to the transform's size, regardless of the aspect ratio, as PaddleX's `Resize` does.

    Args:
        image: `(H, W, 3)` uint8.
        transform: Size, backend and interpolation.

    Returns:
        `(height, width, 3)` uint8, contiguous; `image` itself where it has that size already; else it may be read-only.
    """
    height, width = transform.height, transform.width
    if image.shape[:2] == (height, width):
        return image
    if transform.resize_backend == "pil":
        resized = Image.fromarray(image).resize((width, height), _PIL_FILTERS[transform.interpolation])
        return np.asarray(resized)
    return _as_uint8(cv2.resize(image, (width, height), interpolation=_CV2_FILTERS[transform.interpolation]))


def preprocess(
    data: bytes | memoryview,
    transform: ImageTransform,
    limits: ImageLimits = DEFAULT_IMAGE_LIMITS,
    jpeg_oversampling: float | None = None,
) -> npt.NDArray[np.uint8]:
    """From an encoded image to the tensor `pixels`.

    Args:
        data: A whole image file.
        transform: The model's transform.
        limits: What the image may have at most.
        jpeg_oversampling: Lets a large JPEG file be decoded at a reduced scale, at which both of its sides still have
            so many times the pixels of the network's input; None decodes all of it, as PaddleX does.

    Returns:
        `(height, width, 3)` uint8 RGB, contiguous; it may be read-only.

    Raises:
        ImageError: See :func:`decode_image`.
    """
    longer_side = max(transform.height, transform.width)
    min_side = None if jpeg_oversampling is None else math.ceil(jpeg_oversampling * longer_side)
    return resize_image(decode_image(data, limits, min_side), transform)


def normalization_constants(transform: ImageTransform) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Factor and offset that normalise: `pixels * alpha + beta`.

    PaddleX's `Normalize` computes both in float64 and rounds to float32 once; it does not subtract and divide.

    Returns:
        `alpha` and `beta`, each `(3,)` float32, RGB.
    """
    alpha = [transform.scale / std for std in transform.std]
    beta = [-mean / std for mean, std in zip(transform.mean, transform.std, strict=True)]
    return np.array(alpha, dtype=np.float32), np.array(beta, dtype=np.float32)


def normalize(pixels: npt.NDArray[np.uint8], transform: ImageTransform) -> npt.NDArray[np.float32]:
    """Normalises and changes the layout, bit for bit as PaddleX's `Normalize` and `ToCHWImage` do.

    The served graph does this inside; only runners of the original Paddle graph call it.

    Args:
        pixels: `(N, H, W, 3)` uint8 RGB.
        transform: Scale, mean and standard deviation.

    Returns:
        `(N, 3, H, W)` float32, contiguous.
    """
    alpha, beta = normalization_constants(transform)
    count, height, width, channels = pixels.shape
    normalized = np.empty((count, channels, height, width), dtype=np.float32)
    np.multiply(pixels.transpose(0, 3, 1, 2), alpha[:, None, None], out=normalized)
    normalized += beta[:, None, None]
    return normalized


def _check_size(height: int, width: int, limits: ImageLimits) -> None:
    got = f"got height {height}, width {width}"
    if max(height, width) > limits.max_side:
        text = f"image: expected sides of at most {limits.max_side} pixels, {got}; send a smaller one."
        raise ImageError(text, "side_too_long")
    if height * width > limits.max_pixels:
        raise ImageError(
            f"image: expected at most {limits.max_pixels} pixels, {got} ({height * width}); send a smaller one.",
            "too_many_pixels",
        )


def _jpeg_reduction(header: ImageHeader, min_side: int | None) -> int:
    """By what a file's sides are divided."""
    smaller_side = min(header.height, header.width)
    return next((factor for factor in (8, 4, 2) if min_side and smaller_side >= min_side * factor), 1)


def _decode_jpeg(data: bytes, header: ImageHeader, reduction: int) -> npt.NDArray[np.uint8]:
    if header.upright and header.channels in (1, 3):
        height, width = -(-header.height // reduction), -(-header.width // reduction)
        try:
            return _as_uint8(
                simplejpeg.decode_jpeg(data, min_height=height, min_width=width, min_factor=float(reduction))
            )
        except ValueError:  # libjpeg-turbo warns of something that cv2 may accept
            pass
    if data.find(_JPEG_END, header.scan_offset) < 0:  # stuffing keeps the two bytes out of picture data
        missing = broken("JPEG", data, "its end marker is missing", "truncated")
        if not header.single_scan:
            raise missing
        data += _JPEG_END
        try:
            simplejpeg.decode_jpeg(data, colorspace="CMYK" if header.channels == 4 else "RGB")
        except ValueError:
            raise missing from None
    return _decode_with_cv2(data, header, reduction)


def _decode_with_cv2(data: bytes, header: ImageHeader, reduction: int = 1) -> npt.NDArray[np.uint8]:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), _CV2_REDUCTIONS[reduction])
    except cv2.error as error:
        raise broken(header.format, data, f"cv2 says {' '.join(str(error).split())}", "undecodable") from None
    if image is None:
        raise broken(header.format, data, "cv2 cannot decode it", "undecodable")
    return _as_uint8(cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image))


def _decode_with_pillow(data: bytes, header: ImageHeader, limits: ImageLimits) -> npt.NDArray[np.uint8]:
    try:
        with Image.open(io.BytesIO(data), formats=(header.format,)) as image:
            _check_size(image.height, image.width, limits)  # a GIF's frame may be larger than its screen
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except ImageError:
        raise
    except Exception as error:  # Pillow's plugins raise nearly anything
        raise pillow_broken(header.format, data, error) from None


def _as_uint8(image: Any) -> npt.NDArray[np.uint8]:
    """Narrows the wide array types that cv2 and simplejpeg declare."""
    result: npt.NDArray[np.uint8] = image
    return result
