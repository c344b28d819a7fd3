"""The panel below an annotated picture: where each label, bar and score goes.

Lengths are in pixels; `em` is the height of the font, the unit of all distances. Layout is separate from painting, so
that tests can check it: `CaptionLayout` has the box of each item.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mlcls_client.pictures.fonts import FontStack

EMPTY_TEXT: Final = "no label above the threshold"
NAMELESS_TEXT: Final = "no label"

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
_LINE_EM: Final = 1.35


@dataclass(frozen=True)
class Box:
    """A rectangle: left and top included, right and bottom excluded."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class PlacedText:
    """A line of text. `(x, y)` is the left end of its baseline; the ink stays inside `box`."""

    text: str
    x: int
    y: int
    box: Box


@dataclass(frozen=True)
class LabelRow:
    """One label: its name in one or more lines, the track of its bar, its score (0 to 1) and the score's text."""

    name_lines: tuple[PlacedText, ...]
    track: Box
    score: float
    score_text: PlacedText


@dataclass(frozen=True)
class CaptionLayout:
    """A panel of (height, width) pixels with its rows, or with a `note` if there is no label."""

    height: int
    width: int
    rows: tuple[LabelRow, ...]
    note: tuple[PlacedText, ...] = ()


def lay_out_caption(width: int, label_names: Sequence[str], scores: Sequence[float], font: FontStack) -> CaptionLayout:
    """Place labels, bars and scores in as many columns as fit the width, column by column.

    A name that is too long for its column is wrapped; only a name of more than six lines ends in an ellipsis.

    Args:
        width: Width of the panel.
        label_names: N names.
        scores: N probabilities; a value outside 0 to 1 gets an empty or full bar.
        font: Fonts, loaded at the size to draw.
    """
    em = font.size
    padding, cell_gap = round(_PADDING_EM * em), round(_CELL_GAP_EM * em)
    line = _LineBox.of(font, [EMPTY_TEXT, *label_names])
    if not label_names:
        texts = wrap_text(EMPTY_TEXT, width - 2 * padding, font)
        note = tuple(line.place(text, padding, padding + row * line.height, font) for row, text in enumerate(texts))
        return CaptionLayout(2 * padding + len(texts) * line.height, width, (), note)

    score_texts = [f"{score:.3f}" for score in scores]
    score_width = max(_ink_width(text, font) for text in score_texts)
    longest = max(_ink_width(name, font) for name in label_names)
    column_gap = round(_COLUMN_GAP_EM * em)
    row_count, column_count = _grid(
        len(label_names),
        room=width - 2 * padding + column_gap,
        wish=round(min(longest, _LABEL_WISH_EM * em) + _BAR_MIN_EM * em) + 2 * cell_gap + score_width + column_gap,
    )
    column_width = (width - 2 * padding - (column_count - 1) * column_gap) // column_count
    name_width = min(longest, column_width - round(_BAR_MIN_EM * em) - 2 * cell_gap - score_width)
    name_width = max(name_width, round(2 * em))
    bar_width = min(round(_BAR_MAX_EM * em), column_width - name_width - 2 * cell_gap - score_width)

    wrapped = [wrap_text(name, name_width, font) for name in label_names]
    row_heights = [line.height * max(len(names) for names in wrapped[row::row_count]) for row in range(row_count)]
    row_gap, bar_height = round(_ROW_GAP_EM * em), max(4, round(_BAR_HEIGHT_EM * em))
    rows = []
    for index, names in enumerate(wrapped):
        column, row = divmod(index, row_count)
        left = padding + column * (column_width + column_gap)
        middle = padding + sum(row_heights[:row]) + row * row_gap + row_heights[row] // 2
        first_top = middle - len(names) * line.height // 2
        bar_left = left + name_width + cell_gap
        bar_top = middle - bar_height // 2
        score_left = bar_left + bar_width + cell_gap + score_width - _ink_width(score_texts[index], font)
        rows.append(
            LabelRow(
                name_lines=tuple(
                    line.place(text, left, first_top + number * line.height, font) for number, text in enumerate(names)
                ),
                track=Box(bar_left, bar_top, bar_left + bar_width, bar_top + bar_height),
                score=min(max(scores[index], 0.0), 1.0),
                score_text=line.place(score_texts[index], score_left, middle - line.height // 2, font),
            )
        )
    return CaptionLayout(2 * padding + sum(row_heights) + (row_count - 1) * row_gap, width, tuple(rows))


def lay_out_names(width: int, label_names: Sequence[str], font: FontStack) -> CaptionLayout:
    """Place names without scores one after the other, in as many lines as they need; a note if there are none.

    Args:
        width: Width of the panel.
        label_names: N names.
        font: Fonts, loaded at the size to draw.
    """
    padding, gap = round(_PADDING_EM * font.size), round(_COLUMN_GAP_EM * font.size)
    names = label_names or [NAMELESS_TEXT]
    line = _LineBox.of(font, names)
    placed: list[PlacedText] = []
    left = top = padding
    for name in names:
        for text in wrap_text(name, width - 2 * padding, font):
            if left > padding and left + _ink_width(text, font) > width - padding:
                left, top = padding, top + line.height
            placed.append(line.place(text, left, top, font))
            left = placed[-1].box.right + gap
    return CaptionLayout(top + line.height + padding, width, (), tuple(placed))


def _grid(label_count: int, room: int, wish: int) -> tuple[int, int]:
    """Return (rows, columns): as many columns as fit, none of them empty."""
    column_count = max(1, min(room // wish, _MAX_COLUMNS, label_count))
    row_count = math.ceil(label_count / column_count)
    return row_count, math.ceil(label_count / row_count)


@dataclass(frozen=True)
class _LineBox:
    """Height and baseline of a line of text whose capitals are vertically centered on the bar."""

    height: int
    baseline: int

    @staticmethod
    def of(font: FontStack, texts: Sequence[str]) -> _LineBox:
        # The ink, not the fonts' own metrics: those of fallback fonts differ too much.
        _, capital_top, _, capital_bottom = font.getbbox("H", anchor="ls")
        bounds = [font.getbbox(text, anchor="ls") for text in (*texts, "Hgj")]
        half_capital = (capital_bottom - capital_top) / 2
        above = -min(top for _, top, _, _ in bounds) - half_capital
        below = max(bottom for _, _, _, bottom in bounds) + half_capital
        half = max(_LINE_EM * font.size / 2, above + 1, below + 1)
        return _LineBox(math.ceil(2 * half), math.ceil(half + half_capital))

    def place(self, text: str, left: int, top: int, font: FontStack) -> PlacedText:
        # Ink may begin left of the origin (an italic j); shift it into the box.
        x = left - min(0, math.floor(font.getbbox(text, anchor="ls")[0]))
        box = Box(left, top, left + _ink_width(text, font), top + self.height)
        return PlacedText(text, x, top + self.baseline, box)


def _ink_width(text: str, font: FontStack) -> int:
    left, _, right, _ = font.getbbox(text, anchor="ls")
    return math.ceil(max(right, font.getlength(text))) - min(0, math.floor(left))


def wrap_text(text: str, width: int, font: FontStack) -> list[str]:
    """Break a text into lines that fit a width: between words, or inside a word that is too long.

    There are at most six lines; an ellipsis replaces the rest.
    """
    lines: list[str] = []
    line = ""
    for word in text.split() or [""]:
        joined = f"{line} {word}" if line else word
        if _ink_width(joined, font) <= width:
            line = joined
            continue
        if line:
            lines.append(line)
        while _ink_width(word, font) > width and len(word) > 1:
            head = _fitting_length(word, width, font)
            lines.append(word[:head])
            word = word[head:]
        line = word
    lines.append(line)
    if len(lines) > _MAX_LABEL_LINES:
        last = lines[_MAX_LABEL_LINES - 1]
        while last and _ink_width(last + "…", font) > width:
            last = last[:-1]
        lines = [*lines[: _MAX_LABEL_LINES - 1], last + "…"]
    return lines


def _fitting_length(word: str, width: int, font: FontStack) -> int:
    """Return how many characters of a word fit into a width, at least one."""
    low, high = 1, len(word)
    while low < high:
        middle = (low + high + 1) // 2
        if _ink_width(word[:middle], font) <= width:
            low = middle
        else:
            high = middle - 1
    return low
