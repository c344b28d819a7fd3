"""What decoding and resizing an image takes, in memory and in time of a core, known from its header alone.

The numbers were measured for each kind of file (pictures of one color, photos and noise of 16 megapixels; one core of
an AMD EPYC, cv2 4.11, Pillow 13, simplejpeg 1.9, a network of 448 x 448) and rounded up. A pixel of any file takes 7.5
bytes: 3 of the picture and 4 of Pillow's copy that is resized. What a file may make its decoder do on top of that is
what the numbers are for: keep the coefficients of a progressive JPEG file and go over them in each scan, hold a TIFF
file's strip of 16-bit samples, or decompress data that are as slow to read as can be.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from mlcls.errors import ImageError
from mlcls.images.settings import ImageSettings

if TYPE_CHECKING:
    from mlcls.images.encoded_image import EncodedImage

# Limits of one image, for each pixel that the settings allow: bytes of memory, and nanoseconds of work on its pixels. A
# pixel of a plain JPEG file takes 9 and 7. Work on the bytes of the file is limited by their number.
MEMORY_PER_PIXEL: Final = 9
WORK_NS_PER_PIXEL: Final = 32
# Limit of all images of one request together, in seconds of one core; an image alone is never over it.
REQUEST_WORK_S: Final = 8.0

# What the smallest image takes: to open it, to call a decoder, to resize it to the network's input.
_LEAST_S: Final = 0.001
_CMYK_CHANNELS: Final = 4


class Cost(NamedTuple):
    """What an image takes: bytes of memory at once, its file not among them, and seconds of one core."""

    memory_bytes: int
    pixels_s: float  # on its pixels
    bytes_s: float  # on the bytes of its file

    @property
    def work_s(self) -> float:
        """Seconds of one core in all."""
        return _LEAST_S + self.pixels_s + self.bytes_s


class _Rates(NamedTuple):
    memory_bytes: float  # for each pixel
    pixel_ns: float
    byte_ns: float  # for each byte of the file


_RATES: Final = {
    "BMP": _Rates(7.5, 9, 0),
    "WebP": _Rates(8.5, 14, 40),
    "GIF": _Rates(11, 14, 4),
    "AVIF": _Rates(19, 24, 55),
}


def estimate_cost(image: EncodedImage) -> Cost:
    """Return what decoding and resizing an opened image takes at most."""
    rates = _find_rates(image)
    pixels = image.stored_pixels or image.height * image.width
    pixels_s, bytes_s = pixels * rates.pixel_ns / 1e9, len(image.data) * rates.byte_ns / 1e9
    return Cost(round(pixels * rates.memory_bytes), pixels_s, bytes_s)


def check_cost(cost: Cost, image: EncodedImage, settings: ImageSettings) -> None:
    """Check what an image takes against the limits, which follow from the pixels that the settings allow.

    Raises:
        ImageError: It takes too much memory or work.
    """
    got = f"this {image.format} file of height {image.height}, width {image.width} takes about"
    most_bytes = MEMORY_PER_PIXEL * settings.max_pixels
    if cost.memory_bytes > most_bytes:
        text = f"at most {most_bytes / 1e6:.0f} MB of memory to decode it, {got} {cost.memory_bytes / 1e6:.0f} MB"
        raise ImageError(f"image: expected {text}; send a smaller one, or a plain JPEG.", "too_much_memory")
    most_s = WORK_NS_PER_PIXEL * settings.max_pixels / 1e9
    if cost.pixels_s > most_s:
        scans = f" for its scans, which read a component {image.scans:.0f} times" if image.scans else ""
        text = f"at most {most_s:.2g} s of work to decode it, {got} {cost.pixels_s:.2g} s{scans}"
        raise ImageError(f"image: expected {text}; send a smaller one, or a plain JPEG.", "too_much_work")


def _find_rates(image: EncodedImage) -> _Rates:
    if image.jpeg is not None:
        # a file in CMYK is decoded twice
        times = 2 if image.jpeg.channels == _CMYK_CHANNELS else 1
        if image.jpeg.single_scan:
            return _Rates(9, times * 7, times * 5)
        memory = max(9.0, 4 + 2 * image.jpeg.blocks)
        return _Rates(memory, times * (8 + image.scans), times * 23)
    if image.format == "PNG":
        return _Rates(7.5, 8 + 2 * image.stored_bytes, 10)
    if image.format == "TIFF":
        # a strip or tile, which may be the whole picture, is read and then converted
        if image.read_by_pillow:
            return _Rates(12 + 2 * image.stored_bytes, 24 + 4 * image.stored_bytes, 25)
        memory = max(8.0, 4 + 2 * image.stored_bytes) + (2 * image.stored_bytes if image.scans else 0)
        return _Rates(memory, 16 + 4 * image.stored_bytes + image.scans, 5)
    return _RATES[image.format]
