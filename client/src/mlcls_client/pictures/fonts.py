"""Fonts of the annotated pictures: one for most labels, fallback fonts for the characters that it lacks."""

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
    "NotoColorEmoji",
    "Apple Color Emoji",
    "seguiemj",
)
# In the collection Noto Sans CJK, the font with the Chinese forms of Han characters.
_CHINESE_INDEX: Final = 2
# Bitmap fonts (emoji) come in one size, in pixels; they are scaled.
_BITMAP_SIZES: Final = (109, 160, 136, 96)
_MAX_SCANNED_FONTS: Final = 2000

# A code point that no font has: its glyph is the font's sign for a missing character.
_MISSING: Final = "\uffff"
# They change or join the characters before them, and have no glyph of their own.
_JOINING_CATEGORIES: Final = frozenset({"Mn", "Me", "Mc", "Cf", "Sk"})
_LINE_EM: Final = 1.35

logger = logging.getLogger("mlcls_client")


class FontFace:
    """A font at a size; a bitmap font is scaled to it."""

    def __init__(self, font: ImageFont.FreeTypeFont, scale: float = 1.0) -> None:
        """Wrap a loaded font; `scale` brings it to the desired size."""
        self._font = font
        self._scale = scale
        self._known: dict[str, bool] = {}

    def length(self, text: str) -> float:
        """Return the advance of a text, in pixels."""
        return self._font.getlength(text) * self._scale

    def bounds(self, text: str) -> tuple[float, ...]:
        """Return left, top, right and bottom of a text's ink, from the left end of its baseline."""
        return tuple(edge * self._scale for edge in self._font.getbbox(text, anchor="ls"))

    def write(self, picture: Image.Image, x: float, y: float, text: str, color: tuple[int, int, int]) -> None:
        """Write a text into an RGBA picture, with the left end of its baseline at (x, y)."""
        if self._scale == 1.0:
            ImageDraw.Draw(picture).text((x, y), text, color, self._font, anchor="ls", embedded_color=True)
            return
        left, top, right, bottom = self._font.getbbox(text, anchor="ls")
        tile = Image.new("RGBA", (max(1, math.ceil(right - left)), max(1, math.ceil(bottom - top))))
        ImageDraw.Draw(tile).text((-left, -top), text, color, self._font, anchor="ls", embedded_color=True)
        size = (max(1, round(tile.width * self._scale)), max(1, round(tile.height * self._scale)))
        place = (max(0, round(x + left * self._scale)), max(0, round(y + top * self._scale)))
        picture.alpha_composite(tile.resize(size, Image.Resampling.LANCZOS), place)

    def has(self, character: str) -> bool:
        """Return whether the font has a glyph for a character."""
        if character.isspace() or (character.isascii() and self._scale == 1.0):
            return True
        if character not in self._known:
            mask, missing = self._font.getmask(character), self._font.getmask(_MISSING)
            # A bitmap font has an empty glyph for what it lacks.
            same = (mask.size, bytes(mask)) == (missing.size, bytes(missing))
            self._known[character] = not same and mask.size[1] > 0
        return self._known[character]


class FontStack:
    """Fonts in order of preference: a text is written in the first that has all of it, or piece by piece."""

    def __init__(self, faces: Sequence[FontFace], size: int) -> None:
        """Make a stack of faces that were loaded for text of height `size`."""
        self._faces = faces
        self.size = size

    def width(self, text: str) -> int:
        """Return the width of the picture of a text, in pixels."""
        left, _, right, _ = self._bounds(text)
        return math.ceil(right) - math.floor(left)

    def draw(self, text: str, color: tuple[int, int, int]) -> Image.Image:
        """Draw a text.

        Returns:
            An RGBA picture with all of its ink. Capitals are vertically centered in it.
        """
        left, top, _, bottom = self._bounds(text)
        half_capital = -self._faces[0].bounds("H")[1] / 2
        # The ink, not the fonts' own metrics: those of fallback fonts differ too much.
        half = math.ceil(max(_LINE_EM * self.size / 2, -top - half_capital, bottom + half_capital)) + 1
        # The color is there already, so that the edges of the letters have no other.
        picture = Image.new("RGBA", (max(1, self.width(text)), 2 * half), (*color, 0))
        x = float(-math.floor(left))
        for face, piece in self._pieces(text):
            face.write(picture, x, round(half + half_capital), piece, color)
            x += face.length(piece)
        return picture

    def missing(self, text: str) -> str:
        """Return the characters of a text that no font has, sorted."""
        return "".join(sorted(c for c in set(text) if _is_drawn(c) and not any(face.has(c) for face in self._faces)))

    def _bounds(self, text: str) -> tuple[float, float, float, float]:
        """Return left, top, right and bottom of a text's ink and advance, from the left end of its baseline."""
        left = top = right = bottom = x = 0.0
        for face, piece in self._pieces(text):
            bounds = face.bounds(piece)
            left, top = min(left, x + bounds[0]), min(top, bounds[1])
            right, bottom = max(right, x + bounds[2], x + face.length(piece)), max(bottom, bounds[3])
            x += face.length(piece)
        return left, top, right, bottom

    def _pieces(self, text: str) -> list[tuple[FontFace, str]]:
        drawn = [character for character in text if _is_drawn(character)]
        for face in self._faces:
            if all(face.has(character) for character in drawn):
                return [(face, text)]
        pieces: list[tuple[FontFace, str]] = []
        for character in text:
            joins = pieces and not character.isspace() and not _is_drawn(character)
            fonts_with = (face for face in self._faces if face.has(character))
            face = pieces[-1][0] if joins else next(fonts_with, self._faces[0])
            if pieces and pieces[-1][0] is face:
                pieces[-1] = (face, pieces[-1][1] + character)
            else:
                pieces.append((face, character))
        # Pillow reverses each piece of right-to-left text itself; the order of the pieces is reversed here.
        directions = [unicodedata.bidirectional(character) for character in text]
        first = next((direction for direction in directions if direction in ("L", "R", "AL")), "L")
        return pieces if first == "L" else pieces[::-1]


def _is_drawn(character: str) -> bool:
    return not character.isspace() and unicodedata.category(character) not in _JOINING_CATEGORIES


def choose_fonts(text: str, size: int, font_path: str | os.PathLike[str] | None = None) -> FontStack:
    """Load fonts that can write a text.

    The first is the named font (`font_path`, or the environment variable MLCLS_FONT), or else Pillow's built-in one.
    For characters that it lacks, the system's fonts follow: well-known ones first, then any that has them. Characters
    that are still missing are logged and drawn as empty boxes.

    Args:
        text: Everything that will be written.
        size: Height of the font, in pixels.
        font_path: A TrueType or OpenType file, or the name of a system font.

    Raises:
        InputError: The named font cannot be loaded.
    """
    named = os.fspath(font_path or os.environ.get(FONT_VARIABLE) or "")
    try:
        faces = [FontFace(load_font(named, size))]
    except OSError as error:
        raise InputError(
            f"Expected a TrueType or OpenType font at {named!r} (font_path or {FONT_VARIABLE}), got: {error}."
        ) from error
    missing = FontStack(faces, size).missing(text)
    if missing:
        faces += [face for path in _fonts_with(missing) if (face := _load_face(path, size)) is not None]
        missing = FontStack(faces, size).missing(text)
    if missing:
        logger.warning(
            "No font on this machine has the characters %r. Install one (on Debian: fonts-noto-core, fonts-noto-cjk, "
            "fonts-noto-color-emoji), or set %s to its file.",
            missing,
            FONT_VARIABLE,
        )
    return FontStack(faces, size)


@functools.lru_cache(maxsize=64)
def load_font(path: str, size: int) -> ImageFont.FreeTypeFont:
    """Load a font file, or Pillow's built-in font for an empty path.

    Raises:
        OSError: There is no such font, or the file is not a font.
    """
    if not path:
        return cast(ImageFont.FreeTypeFont, ImageFont.load_default(size))
    return ImageFont.truetype(path, size, _CHINESE_INDEX if Path(path).name == "NotoSansCJK-Regular.ttc" else 0)


@functools.lru_cache(maxsize=64)
def _load_face(path: str, size: int) -> FontFace | None:
    for own_size in (size, *_BITMAP_SIZES):
        try:
            font = load_font(path, own_size)
        except OSError as error:
            if "pixel size" not in str(error):
                return None
        else:
            return FontFace(font, 1.0 if own_size == size else size / max(1, sum(font.getmetrics())))
    return None


@functools.lru_cache(maxsize=256)
def _fonts_with(missing: str) -> tuple[str, ...]:
    """Return the system's fonts that together cover as many of these characters as possible."""
    chosen, left = [], set(missing)
    for path in _font_files()[:_MAX_SCANNED_FONTS]:
        face = _load_face(path, 32) if left else None
        found = {character for character in left if face is not None and face.has(character)}
        if found:
            chosen.append(path)
            left -= found
    return tuple(chosen)


@functools.lru_cache(maxsize=1)
def _font_files() -> list[str]:
    """List the system's font files: the preferred ones first, then plain sans-serif ones."""
    data = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local/share")
    shared = os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
    folders = [Path(folder, "fonts") for folder in (data, *shared.split(":"))]
    if sys.platform == "win32":
        folders = [Path(os.environ.get("WINDIR", r"C:\Windows"), "fonts")]
    elif sys.platform == "darwin":
        folders = [Path("/Library/Fonts"), Path("/System/Library/Fonts"), Path.home() / "Library/Fonts"]
    found = (
        path for folder in folders for path in folder.rglob("*") if path.suffix.lower() in (".ttf", ".otf", ".ttc")
    )
    ranks = {name.casefold(): rank for rank, name in enumerate(_PREFERRED_FONTS)}

    def order(path: Path) -> tuple[object, ...]:
        name = path.stem.casefold()
        return ranks.get(name, len(ranks)), "regular" not in name, "sans" not in name, str(path)

    return [str(path) for path in sorted(found, key=order)]
