"""Refuses images over the limits of a model's settings, before a pixel is decoded."""

from __future__ import annotations

from mlcls.errors import ImageError
from mlcls.image_settings import ImageSettings


def check_bytes(size_bytes: int, settings: ImageSettings) -> None:
    """Refuses a file that is too long.

    Raises:
        ImageError: It is.
    """
    if size_bytes > settings.max_bytes:
        text = f"image: expected at most {settings.max_bytes} bytes, got {size_bytes}; send a smaller file."
        raise ImageError(text, "too_many_bytes")


def check_format(name: str, size_bytes: int, settings: ImageSettings) -> None:
    """Refuses a format that the model does not accept, though it could be decoded.

    Raises:
        ImageError: It is one.
    """
    if name not in settings.formats:
        accepted = " or ".join(filter(None, (", ".join(settings.formats[:-1]), settings.formats[-1])))
        text = f"image: expected {accepted}, which is all that this model accepts, got {name} ({size_bytes} bytes)"
        raise ImageError(f"{text}; convert it.", "format_not_allowed")


def check_size(height: int, width: int, settings: ImageSettings) -> None:
    """Refuses a picture that is too large or too thin.

    Args:
        height: Rows, 1 or more.
        width: Columns, 1 or more.
        settings: The limits.

    Raises:
        ImageError: It is over a limit.
    """
    got = f"got height {height}, width {width}"
    if max(height, width) > settings.max_side:
        text = f"image: expected sides of at most {settings.max_side} pixels, {got}; send a smaller one."
        raise ImageError(text, "side_too_long")
    if height * width > settings.max_pixels:
        text = f"image: expected at most {settings.max_pixels} pixels, {got} ({height * width}); send a smaller one."
        raise ImageError(text, "too_many_pixels")
    if max(height, width) > settings.max_aspect_ratio * min(height, width):
        most = f"at most {settings.max_aspect_ratio:g} times as long as the other"
        raise ImageError(f"image: expected one side to be {most}, {got}; send a part of it.", "aspect_ratio")


def check_frames(frames: int, settings: ImageSettings) -> None:
    """Refuses an animation, or a file of pages, that is too long.

    Raises:
        ImageError: It is.
    """
    if frames > settings.max_frames:
        text = f"image: expected at most {settings.max_frames} frames or pages, got more; send one of them."
        raise ImageError(text, "too_many_frames")
