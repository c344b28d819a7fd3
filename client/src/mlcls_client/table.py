"""The table that `mlcls-client predict` prints: one row per image, its labels beside it."""

import unicodedata
from collections.abc import Iterable, Sequence

EMPTY_TEXT = "(no label above the threshold)"
FAILED_TEXT = "(no result)"
MEMORY_TEXT = "(from memory)"

_HEADER = ("image", "labels")
_GAP = "  "
_MAX_NAME_SHARE = 0.4
_MIN_LABELS_WIDTH = 24


class LabelTable:
    """Formats rows whose columns are aligned; widths are in terminal cells."""

    def __init__(self, names: Iterable[str], width: int | None) -> None:
        """Take the measure of the first column.

        Args:
            names: of all images that will come.
            width: of the terminal; None for rows that are never broken, which suit a file or a pipe.
        """
        longest = max(display_width(name) for name in [_HEADER[0], *names])
        self._name_width = longest if width is None else min(longest, max(10, int(width * _MAX_NAME_SHARE)))
        self._labels_width = None if width is None else max(_MIN_LABELS_WIDTH, width - self._name_width - len(_GAP))

    def header(self) -> str:
        """Return the row above all others."""
        return self._join(_HEADER[0], _HEADER[1])

    def row(self, name: str, label_names: Sequence[str], scores: Sequence[float]) -> str:
        """Return the row of one image, of several lines where the labels need them."""
        items = [f"{label} {score:.3f}" for label, score in zip(label_names, scores, strict=True)]
        lines = _fill(items, self._labels_width) or [EMPTY_TEXT]
        return "\n".join(self._join(name if number == 0 else "", line) for number, line in enumerate(lines))

    def failed_row(self, name: str) -> str:
        """Return the row of an image without a result."""
        return self._join(name, FAILED_TEXT)

    def _join(self, name: str, labels: str) -> str:
        name = _keep_end(name, self._name_width)
        return f"{name}{' ' * (self._name_width - display_width(name))}{_GAP}{labels}"


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
