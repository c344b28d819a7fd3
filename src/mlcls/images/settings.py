"""What images a model accepts and how they are read: limits, formats, truncated files, JPEG at a reduced scale.

A model's own settings are under `images` in its `serving.json`; a missing key has its default. If one differs from its
default, all of them are in the configuration of the preprocess step, where the server reads them.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from mlcls.base.documents import Document
from mlcls.images.formats import FORMATS, Format


class ImageSettings(Document, frozen=True):
    """Limits of an image, all checked before a pixel is decoded, and how it is read.

    Attributes:
        max_bytes: Length of the encoded image.
        max_pixels: Height times width. The limits of memory and work follow from it (`mlcls.images.cost`). Pillow
            itself refuses images with more than the largest value.
        max_side: The larger of height and width, in pixels.
        max_aspect_ratio: The larger of height and width, divided by the smaller.
        max_frames: Frames of an animation or pages of a TIFF file, of which the first is read.
        formats: Accepted formats.
        accept_truncated: Whether to read a truncated or damaged JPEG file as far as it goes, as PaddleX does, instead
            of refusing it. PaddleX reads no other truncated file, nor does mlcls.
        jpeg_oversampling: Decode a large JPEG file at 1/2, 1/4 or 1/8 of its size, if both sides keep this many times
            the pixels of the network's input; None decodes all of it, as PaddleX does.
    """

    max_bytes: Annotated[int, Meta(ge=1, le=1 << 30)] = 32 * 1024 * 1024
    max_pixels: Annotated[int, Meta(ge=1, le=178_956_970)] = 64_000_000
    max_side: Annotated[int, Meta(ge=1, le=65_535)] = 20_000
    max_aspect_ratio: Annotated[float, Meta(ge=1, le=65_535)] = 1000.0
    max_frames: Annotated[int, Meta(ge=1, le=1_000_000)] = 1000
    formats: Annotated[tuple[Format, ...], Meta(min_length=1)] = FORMATS
    accept_truncated: bool = False
    jpeg_oversampling: Annotated[float, Meta(ge=1, le=16)] | None = None

    def changes(self) -> dict[str, Any]:
        """Return the values that are not the defaults, as JSON has them."""
        defaults = msgspec.to_builtins(DEFAULT_IMAGE_SETTINGS)
        return {name: value for name, value in msgspec.to_builtins(self).items() if value != defaults[name]}


DEFAULT_IMAGE_SETTINGS: Final = ImageSettings()
