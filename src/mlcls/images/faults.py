"""The errors for files of a supported format that are not whole."""

from __future__ import annotations

from PIL import UnidentifiedImageError

from mlcls.errors import ImageError, ImageReason


def broken(name: str, data: bytes, why: str, reason: ImageReason = "corrupt") -> ImageError:
    """Return the error for a file of a supported format whose content is not whole."""
    return ImageError(
        f"image: expected a whole {name} file, got {len(data)} bytes that are truncated or corrupt: {why}; "
        f"send the file again, or save it anew.",
        reason,
    )


def pillow_broken(name: str, data: bytes, error: Exception) -> ImageError:
    """Return the same for what Pillow raised, in its words unless they show an address in memory."""
    known = not isinstance(error, UnidentifiedImageError)
    reason: ImageReason = "truncated" if "truncated" in str(error) else "undecodable"
    return broken(name, data, f"Pillow says {error}" if known else "Pillow cannot read it", reason)


def too_complex(name: str, what: str, most: int) -> ImageError:
    """Return the error for a file of so many parts that reading them would take longer than any picture does."""
    return ImageError(
        f"image: expected a {name} file of at most {most} {what}, got one with more; save it anew.", "too_complex"
    )
