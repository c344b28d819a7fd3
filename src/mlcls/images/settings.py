"""What images a model accepts and how they are read: limits, formats, truncated files, JPEG at a reduced scale.

A model's own settings are under `images` in its `serving.json`; a missing key has its default. If one differs from its
default, all of them are in the configuration of the preprocess step, where the server reads them.
"""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any, Final

from mlcls.errors import ConfigError
from mlcls.images.formats import FORMATS

# Pillow itself refuses images with more pixels.
MOST_PIXELS: Final = 178_956_970

_MOST_BYTES: Final = 1 << 30
_LONGEST_SIDE: Final = 65_535
_MOST_FRAMES: Final = 1_000_000
_MOST_OVERSAMPLING: Final = 16.0


@dataclasses.dataclass(frozen=True)
class ImageSettings:
    """Limits of an image, all checked before a pixel is decoded, and how it is read.

    Attributes:
        max_bytes: Length of the encoded image.
        max_pixels: Height times width. While decoding, a pixel takes up to 8 bytes of memory.
        max_side: The larger of height and width, in pixels.
        max_aspect_ratio: The larger of height and width, divided by the smaller.
        max_frames: Frames of an animation or pages of a TIFF file, of which the first is read.
        formats: Accepted formats, out of `mlcls.images.formats.FORMATS`.
        accept_truncated: Whether to read a truncated or damaged JPEG file as far as it goes, as PaddleX does, instead
            of refusing it. PaddleX reads no other truncated file, nor does mlcls.
        jpeg_oversampling: Decode a large JPEG file at 1/2, 1/4 or 1/8 of its size, if both sides keep this many times
            the pixels of the network's input; None decodes all of it, as PaddleX does.

    Raises:
        ConfigError: A value is wrong; the text names it.
    """

    max_bytes: int = 32 * 1024 * 1024
    max_pixels: int = 64_000_000
    max_side: int = 20_000
    max_aspect_ratio: float = 1000.0
    max_frames: int = 1000
    formats: tuple[str, ...] = FORMATS
    accept_truncated: bool = False
    jpeg_oversampling: float | None = None

    def __post_init__(self) -> None:
        for field, most in (
            ("max_bytes", _MOST_BYTES),
            ("max_pixels", MOST_PIXELS),
            ("max_side", _LONGEST_SIDE),
            ("max_frames", _MOST_FRAMES),
        ):
            value = getattr(self, field)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
                raise ConfigError(f"{field}: expected a whole number from 1 to {most}, got {value!r}.")
        _check_number("max_aspect_ratio", self.max_aspect_ratio, 1.0, float(_LONGEST_SIDE))
        if self.jpeg_oversampling is not None:
            _check_number("jpeg_oversampling", self.jpeg_oversampling, 1.0, _MOST_OVERSAMPLING, " or null")
        if not isinstance(self.accept_truncated, bool):
            raise ConfigError(f"accept_truncated: expected true or false, got {self.accept_truncated!r}.")
        known = isinstance(self.formats, tuple) and all(name in FORMATS for name in self.formats)
        if not known or not self.formats or len(set(self.formats)) < len(self.formats):
            got = list(self.formats) if isinstance(self.formats, tuple) else self.formats
            raise ConfigError(f"formats: expected a list of different names out of {', '.join(FORMATS)}, got {got!r}.")
        # one order, so that equal settings have the same text
        object.__setattr__(self, "formats", tuple(name for name in FORMATS if name in self.formats))

    def changes(self) -> dict[str, Any]:
        """Return the values that are not the defaults, as JSON has them."""
        return {
            field.name: list(value) if isinstance(value, tuple) else value
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) != field.default
        }

    def to_json(self) -> str:
        """Return all values, on one line, for `from_json`."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ImageSettings:
        """Read a JSON text.

        Raises:
            ConfigError: The text is not JSON, a key is unknown, or a value is wrong.
        """
        try:
            return cls.from_document(json.loads(text))
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"expected a JSON object, got invalid JSON ({error}).") from None

    @classmethod
    def from_document(cls, document: Any, prefix: str = "") -> ImageSettings:
        """Read a parsed JSON object; a key that it leaves out has its default.

        Args:
            document: The object.
            prefix: What errors begin with.

        Raises:
            ConfigError: A key is unknown or a value is wrong.
        """
        if not isinstance(document, dict):
            raise ConfigError(f"{prefix}expected an object, got {document!r}.")
        names = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(document) - set(names))
        if unknown:
            raise ConfigError(f"{prefix}unknown key {unknown[0]}; expected only {', '.join(names)}.")
        values = dict(document)
        if isinstance(values.get("formats"), list):
            values["formats"] = tuple(str(name) for name in values["formats"])
        try:
            return cls(**values)
        except ConfigError as error:
            raise ConfigError(f"{prefix}{error}") from None


def _check_number(field: str, value: object, least: float, most: float, more: str = "") -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(float(str(value))) or not least <= float(str(value)) <= most:
        raise ConfigError(f"{field}: expected a number from {least:g} to {most:g}{more}, got {value!r}.")


DEFAULT_IMAGE_SETTINGS: Final = ImageSettings()
