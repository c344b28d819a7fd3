"""From the bytes of an image file to pixels: the only code that decodes.

The pixels are those of PaddleX (`paddlex/inference/common/reader`), which decodes with cv2. Rules follow from that:

- What cv2 reads is what cv2 gives: EXIF orientation applied to JPEG, PNG and TIFF but not to WebP, alpha dropped. JPEG
  files are decoded by `mlcls.images.jpeg_decoding`, to the same pixels.
- GIF (first frame) and AVIF, which cv2 does not read, are read by Pillow in the same way. TIFF files whose compression
  cv2 lacks are decompressed by Pillow and then read by cv2.
- A truncated or damaged file is refused, as far as that can be told: of a JPEG file without its end marker, where a
  scan is not whole; of a PNG file without its IEND chunk. Bytes after the end are no fault.

What an image may have at most is checked before a pixel is decoded: `mlcls.images.settings`.
"""

from __future__ import annotations

import io
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from mlcls.errors import ImageError
from mlcls.images.cv2_decoding import decode_with_cv2
from mlcls.images.faults import pillow_broken
from mlcls.images.formats import sniff_format
from mlcls.images.header import ImageHeader, read_image_header
from mlcls.images.jpeg_decoding import decode_jpeg
from mlcls.images.png import strip_png_animation
from mlcls.images.settings import (
    DEFAULT_IMAGE_SETTINGS,
    ImageSettings,
    check_bytes,
    check_format,
    check_frames,
    check_size,
)

_PILLOW_FORMATS: Final = ("GIF", "AVIF")
# LZMA, Zstandard and WebP: compressions of TIFF that Pillow's libtiff has and cv2's has not.
_PILLOW_COMPRESSIONS: Final = (34925, 50000, 50001)


def decode_image(
    data: bytes | memoryview, settings: ImageSettings = DEFAULT_IMAGE_SETTINGS, jpeg_min_side: int | None = None
) -> npt.NDArray[np.uint8]:
    """Decode one image to the pixels that PaddleX computes with.

    Args:
        data: A whole image file of one of `mlcls.images.formats.FORMATS`.
        settings: What the image may have at most, which formats are accepted, and what becomes of truncated files.
        jpeg_min_side: Lets a JPEG file be decoded at 1/2, 1/4 or 1/8 of its size, the least at which both of its sides
            have so many pixels; None decodes all of it. `mlcls.images.transforms.preprocess` has it from the settings.

    Returns:
        `(H, W, 3)` uint8 RGB, contiguous, EXIF orientation applied as cv2 does.

    Raises:
        ImageError: No image, an unsupported format, truncated or corrupt, or over a limit; `reason` says which.
    """
    size_bytes = memoryview(data).nbytes
    check_bytes(size_bytes, settings)
    if not isinstance(data, bytes):
        data = bytes(data)
    check_format(sniff_format(data), size_bytes, settings)
    header = read_image_header(data, settings.max_frames)
    check_size(header.height, header.width, settings)
    check_frames(header.frames, settings)
    if header.jpeg is not None:
        return decode_jpeg(data, header.jpeg, jpeg_min_side, settings.accept_truncated)
    if header.format in _PILLOW_FORMATS:
        return _decode_with_pillow(data, header, settings)
    if header.animated:
        data = strip_png_animation(data)
    elif header.compression in _PILLOW_COMPRESSIONS:
        data = _decompress_tiff(data, settings)
    return decode_with_cv2(data, header.format)


def _decode_with_pillow(data: bytes, header: ImageHeader, settings: ImageSettings) -> npt.NDArray[np.uint8]:
    try:
        with Image.open(io.BytesIO(data), formats=(header.format,)) as image:
            check_size(image.height, image.width, settings)  # a GIF's frame may be larger than its screen
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except ImageError:
        raise
    except Exception as error:  # Pillow's plugins raise nearly anything
        raise pillow_broken(header.format, data, error) from None


def _decompress_tiff(data: bytes, settings: ImageSettings) -> bytes:
    """Return a TIFF file's first page, upright and uncompressed, so that cv2's rules hold for the rest."""
    try:
        with Image.open(io.BytesIO(data), formats=("TIFF",)) as image:
            check_size(image.height, image.width, settings)
            image.load()
            plain = io.BytesIO()
            image.save(plain, "TIFF", compression="raw", tiffinfo={})
            return plain.getvalue()
    except ImageError:
        raise
    except Exception as error:  # Pillow's plugins raise nearly anything
        raise pillow_broken("TIFF", data, error) from None
