"""The annotated picture: the unchanged photo above a panel with a row per label."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence
from typing import Final

from PIL import Image, ImageDraw, ImageOps

from mlcls_client.base.text import end_sentence, visible
from mlcls_client.errors import InputError
from mlcls_client.pictures.caption import (
    EMPTY_TEXT,
    NAMELESS_TEXT,
    Box,
    CaptionLayout,
    PlacedText,
    lay_out_caption,
    lay_out_names,
)
from mlcls_client.pictures.fonts import FontStack, choose_fonts

PANEL_COLOR: Final = (248, 249, 251)
SURROUND_COLOR: Final = (233, 236, 241)
_TEXT_COLOR: Final = (36, 46, 60)
_SCORE_COLOR: Final = (98, 110, 127)
_TRACK_COLOR: Final = (223, 228, 235)
_BAR_COLOR: Final = (47, 125, 140)

# The narrowest picture with a readable row of label, bar and score.
_MIN_WIDTH: Final = 320
_MIN_WIDTH_SHARE: Final = 0.3
_MIN_FONT_SIZE: Final = 13
# The rest of a longer label is not drawn.
_MAX_DRAWN_CHARACTERS: Final = 300
# Bars are painted this much larger and scaled down, because Pillow's shapes have no smooth edges.
_OVERSAMPLING: Final = 4


def open_image(encoded_image: bytes) -> Image.Image:
    """Decode an image for display: first frame, upright according to its EXIF orientation, RGB without alpha.

    Raises:
        InputError: Pillow cannot decode it.
    """
    try:
        with Image.open(io.BytesIO(encoded_image)) as image:
            return _to_rgb(ImageOps.exif_transpose(image))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(end_sentence(f"Expected an image that Pillow can decode, got: {error}")) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        import numpy as np

        # Pillow's conversion clips 16-bit values at 255, which would leave a white picture.
        values = np.asarray(image, dtype=np.float64)
        if values.max(initial=0.0) > 255:
            values = values / 257
        image = Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
    return image.convert("RGB")


def draw_labels(
    image: Image.Image,
    label_names: Sequence[str],
    scores: Sequence[float],
    font_path: str | os.PathLike[str] | None = None,
) -> Image.Image:
    """Draw labels and scores in a panel below an image.

    The pixels of the image stay unchanged. An image that is too narrow for readable text is centered in a wider
    picture.

    Args:
        image: The photo, any mode.
        label_names: N names, in the order in which to list them.
        scores: N finite probabilities.
        font_path: A font file for the labels; None for the environment variable MLCLS_FONT or a built-in font.

    Returns:
        An RGB picture.

    Raises:
        InputError: The font cannot be loaded, or there is not one finite score per name.
    """
    if len(label_names) != len(scores) or not all(math.isfinite(score) for score in scores):
        raise InputError(f"Expected one finite score per label, got {list(scores)} for {list(label_names)}.")
    label_names = [_shown(name) for name in label_names]
    width = picture_width(image.height, image.width)
    fonts = choose_fonts("".join([EMPTY_TEXT, *label_names]), font_size(image.height, width), font_path)
    return _compose(image, lay_out_caption(width, label_names, scores, fonts), fonts)


def draw_names(
    image: Image.Image, label_names: Sequence[str], font_path: str | os.PathLike[str] | None = None
) -> Image.Image:
    """Draw labels without scores, like those of a dataset, in a panel below an image.

    Args:
        image: The photo, any mode.
        label_names: N names, in the order in which to list them; without any, the panel says "no label".
        font_path: See `draw_labels`.

    Returns:
        An RGB picture.

    Raises:
        InputError: The font cannot be loaded.
    """
    label_names = [_shown(name) for name in label_names]
    width = picture_width(image.height, image.width)
    fonts = choose_fonts("".join([NAMELESS_TEXT, *label_names]), font_size(image.height, width), font_path)
    return _compose(image, lay_out_names(width, label_names, fonts), fonts)


def _shown(name: str) -> str:
    """Cut a name to what six lines can hold, because the time of wrapping grows with the square of its length."""
    return visible(name[:_MAX_DRAWN_CHARACTERS])


def _compose(image: Image.Image, layout: CaptionLayout, fonts: FontStack) -> Image.Image:
    picture = Image.new("RGB", (layout.width, image.height + layout.height), PANEL_COLOR)
    picture.paste(SURROUND_COLOR, (0, 0, layout.width, image.height))
    picture.paste(_to_rgb(image), ((layout.width - image.width) // 2, 0))
    panel = picture.crop((0, image.height, layout.width, picture.height))
    _paint(panel, layout, fonts)
    picture.paste(panel, (0, image.height))
    return picture


def picture_width(height: int, width: int) -> int:
    """Return the width of the annotated picture of an image: the image's own, unless it is too narrow for text.

    An image of few pixels is too narrow, and so is a tower, which viewers shrink because of its height.
    """
    return max(width, _MIN_WIDTH, round(_MIN_WIDTH_SHARE * height))


def font_size(height: int, width: int) -> int:
    """Return the height of the text in pixels, readable if a picture of this size is shown as a whole."""
    wish = max(0.028 * math.sqrt(height * width), width / 110, _MIN_FONT_SIZE)
    return max(_MIN_FONT_SIZE, round(min(wish, width / 22)))


def _paint(panel: Image.Image, layout: CaptionLayout, fonts: FontStack) -> None:
    def write(text: PlacedText, color: tuple[int, int, int]) -> None:
        fonts.write(panel, text.x, text.y, text.text, color)

    for note in layout.note:
        write(note, _SCORE_COLOR)
    for row in layout.rows:
        for line in row.name_lines:
            write(line, _TEXT_COLOR)
        _paint_bar(panel, row.track, _TRACK_COLOR, 1.0)
        _paint_bar(panel, row.track, _BAR_COLOR, row.score)
        write(row.score_text, _SCORE_COLOR)


def _paint_bar(panel: Image.Image, track: Box, color: tuple[int, int, int], share: float) -> None:
    """Paint the left share of a bar with round ends; a share too small for them becomes a dot."""
    height, full = track.bottom - track.top, track.right - track.left
    width = max(height, round(full * share))
    if share <= 0 or full <= 0:
        return
    size = (width * _OVERSAMPLING, height * _OVERSAMPLING)
    mask = Image.new("L", size, 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, size[0] - 1, size[1] - 1), radius=size[1] // 2, fill=255)
    panel.paste(color, (track.left, track.top), mask.resize((width, height), Image.Resampling.BOX))
