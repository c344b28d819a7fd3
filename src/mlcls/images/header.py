"""What the first bytes of an image file say: its format, size and number of frames, without decoding a pixel.

cv2 trusts a file's header: 59 bytes of a broken PNG cost it up to 2 GB, 138 bytes of a TIFF with a huge tile 1 GB, and
167 bytes of an animated PNG crash cv2 4.11. So the header is read here first, in 2 to 10 microseconds. Own code,
because Pillow's `Image.open` takes up to 160, looks at neither PNG chunks nor TIFF tiles, cannot open all that cv2 can
(float TIFF), and decodes ICO while opening it, which is why ICO is refused. It serves for AVIF, which Pillow decodes
anyway.
"""

from __future__ import annotations

import dataclasses
import io
import struct
from typing import Final

from PIL import Image

from mlcls.images.faults import broken, pillow_broken, too_complex
from mlcls.images.formats import sniff_format
from mlcls.images.jpeg_header import JpegHeader, read_jpeg_header
from mlcls.images.png import count_png_frames
from mlcls.images.settings import DEFAULT_IMAGE_SETTINGS
from mlcls.images.tiff import read_tiff_header

_GIF_IMAGE: Final = 0x2C
_GIF_EXTENSION: Final = 0x21
# A GIF file may have so many blocks, and one more for each of so many bytes; a full block has 255.
_GIF_BLOCKS: Final = 65_536
_GIF_BLOCK_BYTES: Final = 64
# A still WebP file has up to six chunks; of an animated one the frames count.
_WEBP_CHUNKS: Final = 4096


@dataclasses.dataclass(frozen=True)
class ImageHeader:
    """Format and size of an encoded image.

    Attributes:
        format: One of `mlcls.images.formats.FORMATS`.
        height: Rows, before any EXIF orientation is applied.
        width: Columns, before any EXIF orientation is applied.
        frames: Frames of an animation, pages of a TIFF file; counted no further than one more than asked for.
        animated: PNG only: it has the chunks of an animation.
        compression: TIFF only: the number of the compression scheme.
        jpeg: JPEG only: what else stands before its picture data.
    """

    format: str
    height: int
    width: int
    frames: int = 1
    animated: bool = False
    compression: int = 0
    jpeg: JpegHeader | None = None


def read_image_header(data: bytes, max_frames: int = DEFAULT_IMAGE_SETTINGS.max_frames) -> ImageHeader:
    """Read format and size of an encoded image without decoding it.

    Args:
        data: The whole file.
        max_frames: Frames are counted up to one more.

    Returns:
        The header; height and width are 1 or more.

    Raises:
        ImageError: No image, an unsupported format, or a file that is certainly truncated or corrupt.
    """
    name = sniff_format(data)
    try:
        header = _READERS[name](data, max_frames + 1)
    except (struct.error, IndexError):  # a field lies beyond the last byte
        raise broken(name, data, "its header is cut off", "truncated") from None
    if header.height < 1 or header.width < 1:
        raise broken(name, data, f"its header says height {header.height}, width {header.width}")
    return header


def _read_jpeg(data: bytes, _: int) -> ImageHeader:
    jpeg = read_jpeg_header(data)
    return ImageHeader("JPEG", jpeg.height, jpeg.width, jpeg=jpeg)


def _read_png(data: bytes, _: int) -> ImageHeader:
    if data[12:16] != b"IHDR":
        raise broken("PNG", data, f"its first chunk is {data[12:16]!r}, not IHDR")
    width, height = struct.unpack_from(">II", data, 16)
    frames, animated = count_png_frames(data)
    return ImageHeader("PNG", height, width, frames, animated)


def _read_webp(data: bytes, most_frames: int) -> ImageHeader:
    """Read the first chunk: RFC 9649, sections 2.4 to 2.7."""
    size = 8 + struct.unpack_from("<I", data, 4)[0]
    if size > len(data):
        raise broken("WebP", data, f"its header says {size} bytes", "truncated")
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
        return ImageHeader("WebP", height, width, _count_webp_frames(data, most_frames))
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return ImageHeader("WebP", 1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF))
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return ImageHeader("WebP", height & 0x3FFF, width & 0x3FFF)
    raise broken("WebP", data, f"its first chunk is {kind!r}")


def _count_webp_frames(data: bytes, most: int) -> int:
    frames, at = 0, 12
    for _ in range(_WEBP_CHUNKS + most):
        if at + 8 > len(data) or frames >= most:
            return max(1, frames)
        kind, size = struct.unpack_from("<4sI", data, at)
        frames += kind == b"ANMF"
        at += 8 + size + size % 2
    raise too_complex("WebP", "chunks", _WEBP_CHUNKS + most)


def _read_bmp(data: bytes, _: int) -> ImageHeader:
    """Read BITMAPCOREHEADER (16-bit sizes) or BITMAPINFOHEADER (a negative height means from the top down)."""
    (size,) = struct.unpack_from("<I", data, 14)
    width, height = struct.unpack_from("<HH" if size == 12 else "<ii", data, 18)
    return ImageHeader("BMP", abs(height), width)


def _read_tiff(data: bytes, most_frames: int) -> ImageHeader:
    tiff = read_tiff_header(data, most_frames)
    return ImageHeader("TIFF", tiff.height, tiff.width, tiff.frames, compression=tiff.compression)


def _read_gif(data: bytes, most_frames: int) -> ImageHeader:
    """Read the logical screen; the first frame may be larger, so the decoder has to check its size again."""
    width, height = struct.unpack_from("<HH", data, 6)
    return ImageHeader("GIF", height, width, _count_gif_frames(data, most_frames))


def _count_gif_frames(data: bytes, most: int) -> int:
    """Walk the blocks: GIF89a, appendix B. What is cut off ends the count: only the first frame has to be whole."""
    end = len(data)
    steps = most_steps = _GIF_BLOCKS + end // _GIF_BLOCK_BYTES
    at = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    frames = 0
    while at < end and frames < most:
        kind = data[at]
        if kind == _GIF_IMAGE:
            if at + 9 >= end:
                break
            frames += 1
            flags = data[at + 9]
            at += 11 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
        elif kind == _GIF_EXTENSION:
            at += 2
        else:  # the trailer, or no block at all
            break
        while steps > 0 and at < end and (size := data[at]):
            at += size + 1
            steps -= 1
        at += 1
        steps -= 1
        if steps <= 0:
            raise too_complex("GIF", "blocks for its length", most_steps)
    return max(1, frames)


def _read_avif(data: bytes, _: int) -> ImageHeader:
    try:
        with Image.open(io.BytesIO(data), formats=("AVIF",)) as image:
            return ImageHeader("AVIF", image.height, image.width, getattr(image, "n_frames", 1))
    except Exception as error:  # Pillow's plugins raise nearly anything
        raise pillow_broken("AVIF", data, error) from None


_READERS: Final = {
    "JPEG": _read_jpeg,
    "PNG": _read_png,
    "WebP": _read_webp,
    "BMP": _read_bmp,
    "TIFF": _read_tiff,
    "GIF": _read_gif,
    "AVIF": _read_avif,
}
