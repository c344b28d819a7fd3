"""The panel below an annotated picture: where each label, bar and score goes.

Lengths are in pixels; `em` is the height of the font, the unit of all distances. Layout is separate from painting, so
that tests can check that no item covers another.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from typing import Final, TypeAlias

from PIL import Image, ImageDraw

from mlcls_client.pictures.fonts import Fonts

EMPTY_TEXT: Final = "no label above the threshold"
NAMELESS_TEXT: Final = "no label"

_TEXT_COLOR: Final = (36, 46, 60)
_SCORE_COLOR: Final = (98, 110, 127)
_TRACK_COLOR: Final = (223, 228, 235)
_BAR_COLOR: Final = (47, 125, 140)

_PADDING_EM: Final = 1.15
_COLUMN_GAP_EM: Final = 2.4
_ROW_GAP_EM: Final = 0.3
_CELL_GAP_EM: Final = 0.8
_BAR_MIN_EM: Final = 5.0
_BAR_MAX_EM: Final = 18.0
_BAR_HEIGHT_EM: Final = 0.42
_LABEL_WISH_EM: Final = 11.0
_MAX_COLUMNS: Final = 4
_MAX_LABEL_LINES: Final = 6
# Bars are painted this much larger and scaled down, because Pillow's shapes have no smooth edges.
_OVERSAMPLING: Final = 4

Item: TypeAlias = tuple[Image.Image, int, int]
"""An RGBA picture, and its left and top in the panel."""


def lay_out_scores(
    width: int, label_names: Sequence[str], scores: Sequence[float], fonts: Fonts
) -> tuple[int, list[Item]]:
    """Place N labels, bars and scores in as many columns as fit the width, column by column; N is at least 1.

    A name that is too long for its column is wrapped; only a name of more than six lines ends in an ellipsis. A score
    outside 0 to 1 gets an empty or full bar. Returns the panel's height, and for each label its name, bar and score.
    """
    em = fonts.size
    padding, gap, column_gap = (round(share * em) for share in (_PADDING_EM, _CELL_GAP_EM, _COLUMN_GAP_EM))
    bar_min, row_gap = round(_BAR_MIN_EM * em), round(_ROW_GAP_EM * em)
    score_texts = [fonts.draw(f"{score:.3f}", _SCORE_COLOR) for score in scores]
    score_width = max(text.width for text in score_texts)
    longest = max(fonts.width(name) for name in label_names)
    wish = round(min(longest, _LABEL_WISH_EM * em)) + bar_min + 2 * gap + score_width + column_gap
    column_count = max(1, min((width - 2 * padding + column_gap) // wish, _MAX_COLUMNS, len(label_names)))
    row_count = math.ceil(len(label_names) / column_count)
    column_count = math.ceil(len(label_names) / row_count)  # none is empty
    column_width = (width - 2 * padding - (column_count - 1) * column_gap) // column_count
    room = column_width - 2 * gap - score_width
    name_width = max(min(longest, room - bar_min), 2 * em)
    bar_size = (min(round(_BAR_MAX_EM * em), room - name_width), max(4, round(_BAR_HEIGHT_EM * em)))

    names = [[fonts.draw(line, _TEXT_COLOR) for line in wrap_text(name, name_width, fonts)] for name in label_names]
    heights = [sum(line.height for line in lines) for lines in names]
    row_heights = [max(heights[row::row_count]) for row in range(row_count)]
    items: list[Item] = []
    for index, (lines, score, text) in enumerate(zip(names, scores, score_texts, strict=True)):
        column, row = divmod(index, row_count)
        left = padding + column * (column_width + column_gap)
        middle = padding + sum(row_heights[:row]) + row * row_gap + row_heights[row] // 2
        top = middle - heights[index] // 2
        for line in lines:
            items.append((line, left, top))
            top += line.height
        bar_left = left + name_width + gap
        items.append((draw_bar(bar_size, score), bar_left, middle - bar_size[1] // 2))
        score_left = bar_left + bar_size[0] + gap + score_width - text.width
        items.append((text, score_left, middle - text.height // 2))
    return 2 * padding + sum(row_heights) + (row_count - 1) * row_gap, items


def lay_out_names(width: int, label_names: Sequence[str], fonts: Fonts) -> tuple[int, list[Item]]:
    """Place texts one after the other, in as many lines as they need; return the panel's height and the texts."""
    padding, gap = round(_PADDING_EM * fonts.size), round(_COLUMN_GAP_EM * fonts.size)
    items: list[Item] = []
    left = top = bottom = padding
    for name in label_names:
        for line in wrap_text(name, width - 2 * padding, fonts):
            text = fonts.draw(line, _SCORE_COLOR)
            if left > padding and left + text.width > width - padding:
                left, top = padding, bottom
            items.append((text, left, top))
            left, bottom = left + text.width + gap, max(bottom, top + text.height)
    return bottom + padding, items


def draw_bar(size: tuple[int, int], score: float) -> Image.Image:
    """Draw a bar of (width, height) with round ends, its left share filled; a share too small for them is a dot."""
    width, height = (side * _OVERSAMPLING for side in size)
    bar = Image.new("RGBA", (width, height), (*_TRACK_COLOR, 0))
    for share, color in ((1.0, _TRACK_COLOR), (min(score, 1.0), _BAR_COLOR)):
        if share > 0:
            right = max(height, round(width * share))
            ImageDraw.Draw(bar).rounded_rectangle((0, 0, right - 1, height - 1), height // 2, (*color, 255))
    return bar.resize(size, Image.Resampling.BOX)


def wrap_text(text: str, width: int, fonts: Fonts) -> list[str]:
    """Break a text into lines that fit a width: between words, or inside a word that is too long.

    There are at most six lines; an ellipsis replaces the rest.
    """
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".lstrip()
        if fonts.width(joined) <= width:
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        while len(word) > 1 and fonts.width(word) > width:
            head = _fitting_length(word, width, fonts)
            lines[-1:] = [word[:head], ""]
            word = word[head:]
        lines[-1] = word
    if len(lines) > _MAX_LABEL_LINES:
        last = lines[_MAX_LABEL_LINES - 1]
        while last and fonts.width(f"{last}…") > width:
            last = last[:-1]
        lines[_MAX_LABEL_LINES - 1 :] = [f"{last}…"]
    return lines


def _fitting_length(word: str, width: int, fonts: Fonts) -> int:
    """Return how many characters of a word fit into a width, at least one."""
    return max(1, bisect.bisect_right(range(1, len(word) + 1), width, key=lambda length: fonts.width(word[:length])))
