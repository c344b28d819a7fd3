"""Images whose answers by `FakeServer` tell which they are, and other small things for tests of the client."""

from __future__ import annotations

import io
import socket
import time
from collections.abc import Callable

from PIL import Image

from mlcls_client import MultiLabelResult

NAME = "PP-LCNet_x1_0_ML"
RED, GREEN, BLUE = (200, 0, 0), (0, 180, 0), (0, 0, 160)


def encode(color: tuple[int, int, int] = RED, image_format: str = "PNG", side: int = 4) -> bytes:
    """An image file of one color."""
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), color).save(buffer, format=image_format)
    return buffer.getvalue()


def encode_pages(image_format: str, *colors: tuple[int, int, int], height: int = 20, width: int = 30) -> bytes:
    """A TIFF or PDF file with a page per color; in a PDF file, a pixel is a point."""
    pages, buffer = [Image.new("RGB", (width, height), color) for color in colors], io.BytesIO()
    pages[0].save(buffer, image_format, save_all=True, append_images=pages[1:], resolution=72.0)
    return buffer.getvalue()


def shade(number: int) -> bytes:
    """An image whose score of `red` tells its number, 0 to 250."""
    return encode((number + 5, 0, 0))


def number_of(result: MultiLabelResult) -> int:
    """The number of a `shade`."""
    return round(float(result.scores[0]) * 255) - 5


def decode(encoded: bytes) -> Image.Image:
    """The image of a file."""
    return Image.open(io.BytesIO(encoded))


def unused_url() -> str:
    """An address at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, 30 s at most."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within 30 s"
        time.sleep(0.01)
