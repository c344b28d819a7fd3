"""The annotated picture: the unchanged photo above a panel with a row per label."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from typing import Final

from PIL import Image, ImageOps

from mlcls_client.base.files import decoding_reason
from mlcls_client.base.text import end_sentence, visible
from mlcls_client.errors import InputError
from mlcls_client.pictures.caption import EMPTY_TEXT, NAMELESS_TEXT, Item, lay_out_names, lay_out_scores
from mlcls_client.pictures.fonts import Fonts, choose_fonts

PANEL_COLOR: Final = (248, 249, 251)
SURROUND_COLOR: Final = (233, 236, 241)

# The narrowest picture with a readable row of label, bar and score.
_MIN_WIDTH: Final = 320
_MIN_WIDTH_SHARE: Final = 0.3
_MIN_FONT_SIZE: Final = 13
# The rest of a longer label is not drawn: six lines hold no more, and the time of wrapping grows with its square.
_MAX_DRAWN_CHARACTERS: Final = 300


def open_image(encoded_image: bytes) -> Image.Image:
    """Decode an image for display: first frame, upright according to its EXIF orientation, RGB without alpha.

    Raises:
        InputError: Pillow cannot decode it.
    """
    try:
        with Image.open(io.BytesIO(encoded_image)) as image:
            return _to_rgb(ImageOps.exif_transpose(image))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(
            end_sentence(f"Expected an image that Pillow can decode, got: {decoding_reason(error)}")
        ) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        import numpy as np

        # Pillow's conversion clips 16-bit values at 255, which would leave a white picture.
        values = np.asarray(image, dtype=np.float64)
        if values.max(initial=0.0) > 255:
            values = values / 257
        image = Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
    return image.convert("RGB")


def draw_labels(image: Image.Image, label_names: Sequence[str], scores: Sequence[float]) -> Image.Image:
    """Draw N labels and scores in a panel below an image of any mode; the picture is RGB.

    The pixels of the image stay unchanged. An image that is too narrow for readable text is centered in a wider
    picture.

    Raises:
        InputError: The font cannot be loaded, or there is not one finite score per name.
    """
    if len(label_names) != len(scores) or not all(math.isfinite(score) for score in scores):
        raise InputError(f"Expected one finite score per label, got {list(scores)} for {list(label_names)}.")
    if not label_names:
        return draw_names(image, [EMPTY_TEXT])
    return _draw(image, label_names, lambda width, names, fonts: lay_out_scores(width, names, scores, fonts))


def draw_names(image: Image.Image, label_names: Sequence[str]) -> Image.Image:
    """Draw labels without scores, like those of a dataset, as `draw_labels` does; without any, it says "no label".

    Raises:
        InputError: The font cannot be loaded.
    """
    return _draw(image, label_names or [NAMELESS_TEXT], lay_out_names)


def _draw(
    image: Image.Image,
    label_names: Sequence[str],
    lay_out: Callable[[int, list[str], Fonts], tuple[int, list[Item]]],
) -> Image.Image:
    names = [visible(name[:_MAX_DRAWN_CHARACTERS]) for name in label_names]
    width = picture_width(image.height, image.width)
    panel_height, items = lay_out(width, names, choose_fonts(names, font_size(image.height, width)))
    picture = Image.new("RGB", (width, image.height + panel_height), PANEL_COLOR)
    picture.paste(SURROUND_COLOR, (0, 0, width, image.height))
    picture.paste(_to_rgb(image), ((width - image.width) // 2, 0))
    for item, left, top in items:
        picture.paste(item, (left, image.height + top), item)
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
