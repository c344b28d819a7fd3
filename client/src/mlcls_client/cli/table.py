"""The table that `mlcls-client predict` prints: one row per image, its labels beside it."""

import unicodedata
from collections.abc import Iterable, Sequence
from typing import Final

from mlcls_client.escaping import visible

EMPTY_TEXT: Final = "(no label above the threshold)"
FAILED_TEXT: Final = "(no result)"
MEMORY_TEXT: Final = "(from memory)"

_HEADER: Final = ("image", "page", "labels")
_GAP: Final = "  "
_MAX_NAME_SHARE: Final = 0.4
_MIN_LABELS_WIDTH: Final = 24


class LabelTable:
    """Formats rows whose columns are aligned; widths are in terminal cells."""

    def __init__(self, names: Iterable[str], width: int | None, page_count: int = 0) -> None:
        """Take the measure of the first columns.

        Args:
            names: Of all images that will come.
            width: Of the terminal; None for rows that are never broken, which suit a file or a pipe.
            page_count: How many pages the longest file has; 0 for a table without a column for pages.
        """
        self._page_width = max(len(_HEADER[1]), len(str(page_count - 1))) if page_count else 0
        longest = max(display_width(visible(name)) for name in [_HEADER[0], *names])
        self._name_width = longest if width is None else min(longest, max(10, int(width * _MAX_NAME_SHARE)))
        taken = self._name_width + len(_GAP) + (self._page_width + len(_GAP) if page_count else 0)
        self._labels_width = None if width is None else max(_MIN_LABELS_WIDTH, width - taken)

    def header(self) -> str:
        """Return the row above all others."""
        return self._join(*_HEADER)

    def row(self, name: str, label_names: Sequence[str], scores: Sequence[float], page_index: int | None = None) -> str:
        """Return the row of one image or page, of several lines where the labels need them."""
        items = [f"{visible(label)} {score:.3f}" for label, score in zip(label_names, scores, strict=True)]
        lines = _fill(items, self._labels_width) or [EMPTY_TEXT]
        page = _page_text(page_index)
        name = self._name_with_page(visible(name), page_index)
        return "\n".join(
            self._join(*((name, page) if number == 0 else ("", "")), line) for number, line in enumerate(lines)
        )

    def failed_row(self, name: str, page_index: int | None = None) -> str:
        """Return the row of an image or page without a result."""
        return self._join(self._name_with_page(visible(name), page_index), _page_text(page_index), FAILED_TEXT)

    def _name_with_page(self, name: str, page_index: int | None) -> str:
        """Name a page that the table has no column for: its file came after those that were measured."""
        return name if self._page_width or page_index is None else f"{name}[{page_index}]"

    def _join(self, name: str, page: str, labels: str) -> str:
        name = _keep_end(name, self._name_width)
        page = f"{page:>{self._page_width}}{_GAP}" if self._page_width else ""
        return f"{name}{' ' * (self._name_width - display_width(name))}{_GAP}{page}{labels}"


def _page_text(page_index: int | None) -> str:
    return "" if page_index is None else str(page_index)


def display_width(text: str) -> int:
    """Return how many terminal cells a text takes: two for a wide character, none for a combining mark."""
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )


def _keep_end(text: str, width: int) -> str:
    """Shorten a path at its beginning, where paths are alike."""
    if display_width(text) <= width:
        return text
    while text and display_width(text) > width - 1:
        text = text[1:]
    return f"…{text}"


def _fill(items: Sequence[str], width: int | None) -> list[str]:
    lines: list[str] = []
    for item in items:
        joined = f"{lines[-1]}, {item}" if lines else item
        if lines and width is not None and display_width(joined) > width - 1:
            lines[-1] += ","
            lines.append(item)
        elif lines:
            lines[-1] = joined
        else:
            lines.append(item)
    return lines
