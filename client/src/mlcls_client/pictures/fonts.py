"""Fonts of the annotated pictures: one for most labels, fallback fonts for the characters that it lacks."""

from __future__ import annotations

import functools
import logging
import os
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, TypeAlias

from PIL import Image, ImageDraw, ImageFont

from mlcls_client.errors import InputError

Font: TypeAlias = ImageFont.FreeTypeFont
Bounds: TypeAlias = tuple[float, float, float, float]

FONT_VARIABLE: Final = "MLCLS_FONT"

# Fallback fonts (file name, index in a collection), looked up among the system's fonts in this order, only if a label
# needs them: Pillow's built-in font (Aileron) covers little more than ASCII. Index 2 has the Chinese forms of Han
# characters.
_PREFERRED_FONTS: Final = (
    ("NotoSans-Regular.ttf", 0),
    ("DejaVuSans.ttf", 0),
    ("LiberationSans-Regular.ttf", 0),
    ("Arial.ttf", 0),
    ("NotoSansCJK-Regular.ttc", 2),
    ("NotoSansSC-Regular.otf", 0),
    ("SourceHanSansSC-Regular.otf", 0),
    ("wqy-microhei.ttc", 0),
    ("PingFang.ttc", 0),
    ("msyh.ttc", 0),
    ("DroidSansFallbackFull.ttf", 0),
    ("Arial Unicode.ttf", 0),
    ("NotoColorEmoji.ttf", 0),
    ("Apple Color Emoji.ttc", 0),
    ("seguiemj.ttf", 0),
)
# Bitmap fonts (emoji) come in one size, in pixels; they are scaled.
_PICTURE_SIZES: Final = (109, 160, 136, 96)
_MAX_SCANNED_FONTS: Final = 2000

# A code point that no font has: its glyph is the font's sign for a missing character.
_MISSING: Final = "\uffff"
# They change or join the characters before them, and have no glyph of their own.
_JOINING_CATEGORIES: Final = frozenset({"Mn", "Me", "Mc", "Cf", "Sk"})

logger = logging.getLogger("mlcls_client")


class FontFace:
    """A font at a size; a bitmap font is scaled to it."""

    def __init__(self, font: Font, scale: float = 1.0) -> None:
        """Wrap a loaded font; `scale` brings it to the desired size."""
        self.font = font
        self._scale = scale
        self._known: dict[str, bool] = {}

    def length(self, text: str) -> float:
        """Return the advance of a text, in pixels."""
        return self.font.getlength(text) * self._scale

    def bounds(self, text: str) -> Bounds:
        """Return left, top, right and bottom of a text's ink, from the left end of its baseline."""
        left, top, right, bottom = self.font.getbbox(text, anchor="ls")
        return left * self._scale, top * self._scale, right * self._scale, bottom * self._scale

    def write(self, picture: Image.Image, x: float, y: float, text: str, color: tuple[int, int, int]) -> None:
        """Write a text with the left end of its baseline at (x, y)."""
        if self._scale == 1.0:
            ImageDraw.Draw(picture).text((x, y), text, fill=color, font=self.font, anchor="ls", embedded_color=True)
            return
        left, top, right, bottom = self.font.getbbox(text, anchor="ls")
        tile = Image.new("RGBA", (max(1, round(right - left)), max(1, round(bottom - top))))
        ImageDraw.Draw(tile).text((-left, -top), text, fill=color, font=self.font, anchor="ls", embedded_color=True)
        size = (max(1, round(tile.width * self._scale)), max(1, round(tile.height * self._scale)))
        small = tile.resize(size, Image.Resampling.LANCZOS)
        picture.paste(small, (round(x + left * self._scale), round(y + top * self._scale)), small)

    def has(self, character: str) -> bool:
        """Return whether the font has a glyph for a character."""
        if character.isspace() or (character.isascii() and self._scale == 1.0):
            return True
        if character not in self._known:
            picture = self._picture(character)
            # A bitmap font has an empty glyph for what it lacks.
            self._known[character] = picture != self._picture(_MISSING) and picture[0][1] > 0
        return self._known[character]

    def _picture(self, character: str) -> tuple[tuple[int, int], bytes]:
        mask = self.font.getmask(character)
        return mask.size, bytes(mask)


class FontStack:
    """Fonts in order of preference: a text is written in the first that has all of it, or piece by piece."""

    def __init__(self, faces: Sequence[FontFace], size: int) -> None:
        """Make a stack of faces that were loaded for text of height `size`."""
        self._faces = faces
        self.size = size

    def getlength(self, text: str) -> float:
        """Return the advance of a text, in pixels."""
        return sum(face.length(piece) for face, piece in self._pieces(text))

    def getbbox(self, text: str, anchor: str = "ls") -> Bounds:
        """Return left, top, right and bottom of a text's ink, from the left end of its baseline."""
        if anchor != "ls":
            raise ValueError(f"Expected the anchor 'ls', got {anchor!r}.")
        bounds, x = [(0.0, 0.0, 0.0, 0.0)] if not text else [], 0.0
        for face, piece in self._pieces(text):
            left, top, right, bottom = face.bounds(piece)
            bounds.append((x + left, top, x + right, bottom))
            x += face.length(piece)
        lefts, tops, rights, bottoms = zip(*bounds, strict=True)
        return min(lefts), min(tops), max(rights), max(bottoms)

    def write(self, picture: Image.Image, x: float, y: float, text: str, color: tuple[int, int, int]) -> None:
        """Write a text with the left end of its baseline at (x, y)."""
        for face, piece in self._pieces(text):
            face.write(picture, x, y, piece, color)
            x += face.length(piece)

    def missing(self, text: str) -> str:
        """Return the characters of a text that no font has, sorted."""
        return "".join(sorted(c for c in set(text) if _is_drawn(c) and not any(face.has(c) for face in self._faces)))

    def _pieces(self, text: str) -> list[tuple[FontFace, str]]:
        drawn = [character for character in text if _is_drawn(character)]
        for face in self._faces:
            if all(face.has(character) for character in drawn):
                return [(face, text)]
        pieces: list[tuple[FontFace, str]] = []
        for character in text:
            joins = pieces and not character.isspace() and not _is_drawn(character)
            face = pieces[-1][0] if joins else self._face_of(character)
            if pieces and pieces[-1][0] is face:
                pieces[-1] = (face, pieces[-1][1] + character)
            else:
                pieces.append((face, character))
        # Pillow reverses each piece of right-to-left text itself; the order of the pieces is reversed here.
        return pieces[::-1] if _runs_right_to_left(text) else pieces

    def _face_of(self, character: str) -> FontFace:
        return next((face for face in self._faces if face.has(character)), self._faces[0])


def _is_drawn(character: str) -> bool:
    return not character.isspace() and unicodedata.category(character) not in _JOINING_CATEGORIES


def _runs_right_to_left(text: str) -> bool:
    directions = (unicodedata.bidirectional(character) for character in text)
    return next((direction for direction in directions if direction in ("L", "R", "AL")), "L") != "L"


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
    named = font_path or os.environ.get(FONT_VARIABLE)
    try:
        faces = [FontFace(load_font(os.fspath(named) if named else None, size))]
    except OSError as error:
        raise InputError(
            f"Expected a TrueType or OpenType font at {os.fspath(named or '')!r} (font_path or {FONT_VARIABLE}), got: "
            f"{error}."
        ) from error
    missing = FontStack(faces, size).missing(text)
    if missing:
        faces += [face for path, index in _fonts_with(missing) if (face := load_face(path, size, index)) is not None]
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
def load_font(path: str | None, size: int, index: int = 0) -> Font:
    """Load a font file, or Pillow's built-in font for None.

    Raises:
        OSError: There is no such font, or the file is not a font.
        InputError: This Pillow is built without FreeType.
    """
    if path is not None:
        return ImageFont.truetype(path, size, index)
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise InputError("Expected a Pillow built with FreeType, got one without; install Pillow's wheel.")
    return font


@functools.lru_cache(maxsize=64)
def load_face(path: str, size: int, index: int = 0) -> FontFace | None:
    """Load a fallback font; None if it cannot be loaded."""
    for own_size in (size, *_PICTURE_SIZES):
        try:
            font = load_font(path, own_size, index)
        except OSError as error:
            if "pixel size" not in str(error):
                return None
        else:
            ascent, descent = font.getmetrics()
            return FontFace(font, 1.0 if own_size == size else size / max(1, ascent + descent))
    return None


@functools.lru_cache(maxsize=256)
def _fonts_with(missing: str) -> tuple[tuple[str, int], ...]:
    """Return (path, index) of the system's fonts that together cover as many of these characters as possible."""
    chosen, left = [], set(missing)
    for path, index in _candidates():
        if not left:
            break
        face = load_face(path, 32, index)
        found = {character for character in left if face is not None and face.has(character)}
        if found:
            chosen.append((path, index))
            left -= found
    return tuple(chosen)


def _candidates() -> Iterator[tuple[str, int]]:
    files = _font_files()
    by_name = {Path(path).name.casefold(): path for path in reversed(files)}
    for name, index in _PREFERRED_FONTS:
        path = by_name.get(name.casefold())
        if path is not None:
            yield path, index
    for path in files[:_MAX_SCANNED_FONTS]:
        yield path, 0


@functools.lru_cache(maxsize=1)
def _font_files() -> list[str]:
    """List the system's font files, plain upright sans-serif ones first."""
    found = (
        os.path.join(parent, name)
        for folder in _font_folders()
        for parent, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith((".ttf", ".otf", ".ttc"))
    )
    return sorted(found, key=_plainness)


def _plainness(path: str) -> tuple[int, int, int, str]:
    name = Path(path).stem.casefold()
    odd = re.search(r"bold|italic|oblique|light|thin|black|heavy|medium|condensed|mono|display|looped", name)
    return (1 if odd else 0, 0 if "regular" in name else 1, 0 if "sans" in name else 1, path)


def _font_folders() -> Iterable[str]:
    home = Path.home()
    if sys.platform == "win32":
        return [os.path.join(os.environ.get("WINDIR", r"C:\Windows"), "fonts")]
    if sys.platform == "darwin":
        return ["/Library/Fonts", "/System/Library/Fonts", str(home / "Library/Fonts")]
    data = os.environ.get("XDG_DATA_HOME") or str(home / ".local/share")
    shared = os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
    return [os.path.join(folder, "fonts") for folder in (data, *shared.split(":"))]
