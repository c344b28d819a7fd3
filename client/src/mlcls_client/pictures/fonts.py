"""Fonts of the annotated pictures: one for most labels, others for labels with characters that it lacks."""

from __future__ import annotations

import functools
import logging
import math
import os
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Final, cast

from PIL import Image, ImageDraw, ImageFont

from mlcls_client.errors import InputError

FONT_VARIABLE: Final = "MLCLS_FONT"

# The first fonts to look for, because Pillow's built-in one (Aileron) covers little more than ASCII.
_PREFERRED_FONTS: Final = (
    "NotoSans-Regular",
    "DejaVuSans",
    "LiberationSans-Regular",
    "Arial",
    "NotoSansCJK-Regular",
    "NotoSansSC-Regular",
    "SourceHanSansSC-Regular",
    "wqy-microhei",
    "PingFang",
    "msyh",
    "DroidSansFallbackFull",
    "Arial Unicode",
)
# In the collection Noto Sans CJK, the font with the Chinese forms of Han characters.
_CHINESE_INDEX: Final = 2
_MAX_SCANNED_FONTS: Final = 2000

# A code point that no font has: its glyph is the font's sign for a missing character.
_MISSING: Final = "\uffff"
# They change or join the characters before them, and have no glyph of their own.
_JOINING_CATEGORIES: Final = frozenset({"Mn", "Me", "Mc", "Cf", "Sk"})
_LINE_EM: Final = 1.35

logger = logging.getLogger("mlcls_client")


class Fonts:
    """Fonts in order of preference: a text is written in the first that has all its characters, or else in several."""

    def __init__(self, fonts: Sequence[ImageFont.FreeTypeFont], size: int) -> None:
        """Take fonts that were loaded for text of height `size`, in pixels."""
        self._fonts = fonts
        self.size = size

    def width(self, text: str) -> int:
        """Return the width of the picture of a text, in pixels."""
        left, _, right, _ = self._ink(text)
        return math.ceil(right) - math.floor(left)

    def draw(self, text: str, color: tuple[int, int, int]) -> Image.Image:
        """Draw a text: an RGBA picture with all of its ink, in which capitals are vertically centered."""
        left, top, right, bottom = self._ink(text)
        half_capital = -self._fonts[0].getbbox("H", anchor="ls")[1] / 2
        # The ink, not the fonts' own metrics, which differ too much.
        half = math.ceil(max(_LINE_EM * self.size / 2, -top - half_capital, bottom + half_capital)) + 1
        # The color is there already, so that the edges of the letters have no other.
        picture = Image.new("RGBA", (max(1, math.ceil(right) - math.floor(left)), 2 * half), (*color, 0))
        for x, font, run in self._runs(text):
            place = (x - math.floor(left), round(half + half_capital))
            ImageDraw.Draw(picture).text(place, run, (*color, 255), font, anchor="ls")
        return picture

    def missing(self, texts: Sequence[str]) -> str:
        """Return the characters of texts that none of the fonts has, sorted."""
        return "".join(sorted({c for c in set("".join(texts)) if not any(_has(font, c) for font in self._fonts)}))

    def _ink(self, text: str) -> tuple[float, float, float, float]:
        """Return left, top, right and bottom of a text that begins at (0, 0) on its base line, blank ends included."""
        boxes = [(0.0, 0.0, 0.0, 0.0)]
        for x, font, run in self._runs(text):
            left, top, right, bottom = font.getbbox(run, anchor="ls")
            boxes.append((x + left, top, x + max(right, font.getlength(run)), bottom))
        lefts, tops, rights, bottoms = zip(*boxes, strict=True)
        return min(lefts), min(tops), max(rights), max(bottoms)

    def _runs(self, text: str) -> list[tuple[float, ImageFont.FreeTypeFont, str]]:
        """Split a text into runs of one font each, with the place where each begins."""
        whole = next((font for font in self._fonts if all(_has(font, character) for character in text)), None)
        if whole is not None:
            return [(0.0, whole, text)]
        runs: list[tuple[float, ImageFont.FreeTypeFont, str]] = []
        for character in text:
            font = next((font for font in self._fonts if _has(font, character)), self._fonts[0])
            x, last, run = runs[-1] if runs else (0.0, font, "")
            if last is font or _joins(character):
                runs[-1:] = [(x, last, run + character)]
            else:
                runs.append((x + last.getlength(run), font, character))
        return runs


@functools.lru_cache(maxsize=4096)
def _has(font: ImageFont.FreeTypeFont, character: str) -> bool:
    if _joins(character):
        return True
    glyph, missing = font.getmask(character), font.getmask(_MISSING)
    return (glyph.size, bytes(glyph)) != (missing.size, bytes(missing))


def _joins(character: str) -> bool:
    return character.isspace() or unicodedata.category(character) in _JOINING_CATEGORIES


def choose_fonts(texts: Sequence[str], size: int) -> Fonts:
    """Load fonts that can write texts, of a height in pixels.

    The first is the font of the environment variable MLCLS_FONT (a file or a system font), or else Pillow's built-in
    one. For texts of which it lacks characters, the system's fonts follow: well-known ones first, then any that has
    them. Characters that are still missing are logged and drawn as empty boxes.

    Raises:
        InputError: The named font cannot be loaded.
    """
    named = os.environ.get(FONT_VARIABLE) or ""
    try:
        fonts = [load_font(named, size)]
    except OSError as error:
        raise InputError(f"Expected a TrueType or OpenType font in {FONT_VARIABLE}, got {named!r}: {error}.") from error
    lacking = [text for text in texts if Fonts(fonts, size).missing([text])]
    fonts += [load_font(path, size) for path in _fonts_for(tuple(lacking))]
    # what no font has all of is written in several, so each character that is still missing needs one
    fonts += [load_font(path, size) for path in _fonts_for(tuple(Fonts(fonts, size).missing(lacking)))]
    chosen = Fonts(fonts, size)
    if missing := chosen.missing(lacking):
        logger.warning(
            "No font on this machine has these characters of the labels: %r. Install one (on Debian: "
            "fonts-noto-core, fonts-noto-cjk), or set %s to its file.",
            missing,
            FONT_VARIABLE,
        )
    return chosen


@functools.lru_cache(maxsize=64)
def load_font(path: str, size: int) -> ImageFont.FreeTypeFont:
    """Load a font file, or Pillow's built-in font for an empty path.

    Raises:
        OSError: There is no such font, or the file is not a font of outlines.
    """
    if not path:
        return cast(ImageFont.FreeTypeFont, ImageFont.load_default(size))
    return ImageFont.truetype(path, size, _CHINESE_INDEX if Path(path).name == "NotoSansCJK-Regular.ttc" else 0)


@functools.lru_cache(maxsize=256)
def _fonts_for(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Return the system's fonts that have all characters of a text, or as many of them as any before."""
    chosen: dict[str, None] = {}
    lacks = {text: len(text) for text in texts}
    for path in _font_files()[:_MAX_SCANNED_FONTS] if texts else ():
        try:
            font = load_font(path, 32)
        except OSError:
            continue
        for text, least in lacks.items():
            lacks[text] = min(least, sum(not _has(font, character) for character in text))
            if lacks[text] < least:
                chosen[path] = None
        if not any(lacks.values()):
            break
    return tuple(chosen)


@functools.lru_cache(maxsize=1)
def _font_files() -> list[str]:
    """List the system's font files: the preferred ones first, then plain sans-serif ones."""
    data = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local/share")
    shared = os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
    folders = [Path(folder, "fonts") for folder in (data, *shared.split(":"))]
    if sys.platform == "darwin":
        folders = [Path("/Library/Fonts"), Path("/System/Library/Fonts"), Path.home() / "Library/Fonts"]
    found = (
        path for folder in folders for path in folder.rglob("*") if path.suffix.lower() in (".ttf", ".otf", ".ttc")
    )
    ranks = {name.casefold(): rank for rank, name in enumerate(_PREFERRED_FONTS)}

    def order(path: Path) -> tuple[object, ...]:
        name = path.stem.casefold()
        return ranks.get(name, len(ranks)), "regular" not in name, "sans" not in name, str(path)

    return [str(path) for path in sorted(found, key=order)]
