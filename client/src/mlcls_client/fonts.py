"""Which font the annotated pictures are written in."""

import functools
import logging
import os
from typing import TypeAlias

from PIL import ImageFont

from mlcls_client.errors import InputError

Font: TypeAlias = ImageFont.FreeTypeFont

FONT_VARIABLE = "MLCLS_FONT"

# Pillow's built-in font (Aileron) covers little more than ASCII. These are looked up by name among the system's
# fonts, only when a label needs them.
_SYSTEM_FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "LiberationSans-Regular.ttf",
    "Arial.ttf",
    "NotoSansCJK-Regular.ttc",
    "wqy-microhei.ttc",
    "PingFang.ttc",
    "msyh.ttc",
    "Arial Unicode.ttf",
)

# A code point that no font has: its picture is the font's sign for a missing character.
_MISSING = "\uffff"

logger = logging.getLogger("mlcls_client")


def choose_font(text: str, size: int, font_path: "str | os.PathLike[str] | None" = None) -> Font:
    """Load a font that can write a text.

    A named font (`font_path`, else the environment variable MLCLS_FONT) is used whatever it covers. Without one it is
    Pillow's built-in font, or where that lacks characters, the usual system font that lacks the fewest. Characters
    that are still missing are logged and come out as empty boxes.

    Args:
        text: all that will be written.
        size: height of the font, pixels.
        font_path: a TrueType or OpenType file, or the name of a system font.

    Raises:
        InputError: the named font cannot be loaded.
    """
    named = font_path or os.environ.get(FONT_VARIABLE)
    if named:
        try:
            font = load_font(os.fspath(named), size)
        except OSError as error:
            raise InputError(
                f"expected a TrueType or OpenType font at {os.fspath(named)!r} (font_path or {FONT_VARIABLE}): {error}"
            ) from error
    else:
        font = load_font(None, size)
        if missing_characters(font, text):
            font = _system_font(text, size) or font
    missing = missing_characters(font, text)
    if missing:
        logger.warning(
            "the font %s lacks the characters %r; name a font that has them with %s",
            font.getname()[0],
            missing,
            FONT_VARIABLE,
        )
    return font


@functools.lru_cache(maxsize=64)
def load_font(path: str | None, size: int) -> Font:
    """Load a font file, or Pillow's built-in font for None.

    Raises:
        OSError: no such font, or not a font.
        InputError: this Pillow is built without FreeType.
    """
    if path is not None:
        return ImageFont.truetype(path, size)
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise InputError("expected a Pillow that is built with FreeType, this one is not; install Pillow's wheel")
    return font


def missing_characters(font: Font, text: str) -> str:
    """Return the characters of a text that a font has no picture for, sorted."""
    blank = _picture(font, _MISSING)
    return "".join(
        character
        for character in sorted(set(text))
        if not character.isascii() and not character.isspace() and _picture(font, character) == blank
    )


def _picture(font: Font, character: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(character)
    return mask.size, bytes(mask)


@functools.lru_cache(maxsize=256)
def _system_font(text: str, size: int) -> Font | None:
    """Return the system font that lacks the fewest characters of a text; None where there is no font at all."""
    found: list[Font] = []
    for name in _SYSTEM_FONTS:
        try:
            found.append(load_font(name, size))
        except OSError:
            continue
    return min(found, key=lambda font: len(missing_characters(font, text)), default=None)
