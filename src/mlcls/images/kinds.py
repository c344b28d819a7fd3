"""Kinds of JPEG, TIFF and BMP files that are whole and that no decoder here reads.

Decoders say of such a file no more than that they cannot read it, or, as cv2 does for an unknown TIFF compression, give
a black picture. So the header tells: what is listed here is what cv2 4.11 reads, tried kind by kind
(`tests/unit/images/test_kinds.py`).
"""

from __future__ import annotations

from typing import Final

from mlcls.images.formats import unsupported

LOSSLESS_FRAMES: Final = (0xC3, 0xCB)
_HIERARCHICAL_FRAMES: Final = (0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF)
_JPEG_CHANNELS: Final = (1, 3, 4)

# LZMA and Zstandard: TIFF compressions that Pillow's libtiff has and cv2's lacks.
_PILLOW_COMPRESSIONS: Final = (34925, 50000)
# None, CCITT (3 kinds), LZW, JPEG, deflate (2 numbers), PackBits.
_CV2_COMPRESSIONS: Final = (1, 2, 3, 4, 5, 7, 8, 32946, 32773)
_COMPRESSION_NAMES: Final = {6: "old-style JPEG", 34712: "JPEG 2000", 34887: "LERC", 50001: "WebP", 50002: "JPEG XL"}
# Photometric interpretation and bits of samples that Pillow unpacks and cv2 does not.
_PILLOW_SAMPLES: Final = ((0, 2), (1, 2), (3, 2), (0, 4), (1, 4))
# cv2 reads tiles of a multiple of this many pixels only; TIFF allows sides of any multiple of 16.
_CV2_TILE_PIXELS: Final = 1024
_INTEGERS: Final = (1, 2)  # sample formats; 3 is float, 4 to 6 are undefined and complex
# Samples of a pixel by photometric interpretation (gray, RGB, palette, CMYK, YCbCr, Lab) and bits of a sample.
_TIFF_SAMPLES: Final = {
    **dict.fromkeys(((color, bits) for color in (0, 1, 3) for bits in (8, 16)), (1, 2, 3, 4)),
    **dict.fromkeys(((0, 1), (1, 1), (3, 1), (3, 4), *_PILLOW_SAMPLES), (1,)),
    **dict.fromkeys(((2, 8), (2, 16)), (3, 4)),
    (5, 8): (4,),
    **dict.fromkeys(((6, 8), (8, 8), (8, 16)), (3,)),
}

# Sizes of a BMP file's header, and its compressions (none, RLE8, RLE4, bit fields) by bits of a pixel.
_BMP_HEADERS: Final = (12, 40, 52, 56, 64, 108, 124)
_BMP_COMPRESSIONS: Final = {1: (0,), 4: (0, 2), 8: (0, 1), 16: (0, 3), 24: (0,), 32: (0, 3)}
_BMP_BIT_FIELDS: Final = 3


def check_jpeg_kind(data: bytes, frame: int, precision: int, height: int, channels: int) -> None:
    """Check the frame header of a JPEG file: its marker, the bits of a sample, height, and the number of channels.

    Raises:
        ImageError: No such file can be decoded.
    """
    if precision != 8:
        raise unsupported("JPEG", data, f"of {precision}-bit samples")
    if frame in _HIERARCHICAL_FRAMES:
        raise unsupported("JPEG", data, "of hierarchical coding")
    if height == 0:
        raise unsupported("JPEG", data, "whose height follows its picture")
    if channels not in _JPEG_CHANNELS:
        raise unsupported("JPEG", data, f"of {channels} channels")


def check_tiff_kind(data: bytes, compression: int, color: int, bits: int, samples: int, sample_format: int) -> None:
    """Check a TIFF file's compression, photometric interpretation, and its samples: their bits, number and format.

    Raises:
        ImageError: No such file can be decoded.
    """
    if compression not in _CV2_COMPRESSIONS + _PILLOW_COMPRESSIONS:
        raise unsupported("TIFF", data, f"of compression {_COMPRESSION_NAMES.get(compression, compression)}")
    if sample_format not in _INTEGERS or bits > 16:
        raise unsupported("TIFF", data, f"of {bits}-bit numbers, of which nothing says which is white")
    signed = sample_format != 1 and (color, bits) in _PILLOW_SAMPLES
    if samples not in _TIFF_SAMPLES.get((color, bits), ()) or signed:
        what = f"of {samples} x {bits} bits a pixel, photometric interpretation {color}"
        raise unsupported("TIFF", data, what)


def is_read_by_pillow(compression: int, color: int, bits: int, tile_pixels: int) -> bool:
    """Return whether Pillow reads such a TIFF file and cv2 does not."""
    is_unusual = compression in _PILLOW_COMPRESSIONS or (color, bits) in _PILLOW_SAMPLES
    return is_unusual or tile_pixels % _CV2_TILE_PIXELS != 0


def check_bmp_kind(data: bytes, header_bytes: int, bits: int, compression: int) -> None:
    """Check the size of a BMP file's header, the bits of a pixel, and the number of its compression.

    Raises:
        ImageError: No such file can be decoded.
    """
    # cv2 takes the bit fields from behind a header of 40 bytes; in a longer one they are inside
    misplaced = bits == 16 and compression == _BMP_BIT_FIELDS and header_bytes != 40
    if header_bytes not in _BMP_HEADERS or compression not in _BMP_COMPRESSIONS.get(bits, ()) or misplaced:
        what = f"of {bits} bits a pixel, compression {compression}, with a header of {header_bytes} bytes"
        raise unsupported("BMP", data, what)
