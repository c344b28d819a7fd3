"""The output of `mlcls-client predict`: a table, JSON Lines or CSV, and files in a folder."""

from __future__ import annotations

import csv
import io
import json
import os
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, Literal, Protocol, TypeAlias

from mlcls_client.base.text import csv_cell, visible, visible_json
from mlcls_client.result import MultiLabelResult

SavedKind: TypeAlias = Literal["img", "json"]

EMPTY_TEXT: Final = "(no label above the threshold)"
FAILED_TEXT: Final = "(no result)"
MEMORY_TEXT: Final = "(from memory)"

_TABLE_HEADER: Final = ("image", "page", "labels")
_GAP: Final = "  "
_MAX_NAME_SHARE: Final = 0.4
_MIN_LABELS_WIDTH: Final = 24


class ResultWriter(Protocol):
    """A format of printed results."""

    def lines(self, result: MultiLabelResult) -> Iterator[str]:
        """Yield the lines of one result; before those of the first, the header."""
        ...


class TableWriter:
    """A table with a row per image."""

    def __init__(self, table: LabelTable) -> None:
        """Write into a table that has been measured."""
        self._table = table
        self._begun = False

    def lines(self, result: MultiLabelResult) -> Iterator[str]:
        """See `ResultWriter.lines`."""
        if not self._begun:
            self._begun = True
            yield self._table.header()
        name = result.input_path or MEMORY_TEXT
        if result.error is not None:
            yield self._table.failed_row(name, result.page_index)
        else:
            yield self._table.row(name, result.label_names, result.scores, result.page_index)


class JsonLinesWriter:
    """A JSON object per image."""

    def lines(self, result: MultiLabelResult) -> Iterator[str]:
        """See `ResultWriter.lines`."""
        yield visible_json(json.dumps(result.json["res"], ensure_ascii=False))


class CsvWriter:
    """A row per label. An image without a label or result has one row, too. No cell is a formula."""

    _HEADER = ("input_path", "page_index", "class_id", "label_name", "score", "error")

    def __init__(self) -> None:
        """Start without a header."""
        self._begun = False

    def lines(self, result: MultiLabelResult) -> Iterator[str]:
        """See `ResultWriter.lines`."""
        if not self._begun:
            self._begun = True
            yield _csv_row(self._HEADER)
        image = (result.input_path, result.page_index)
        labels: list[tuple[object, ...]] = list(zip(result.class_ids, result.label_names, result.scores, strict=True))
        for label in labels or [(None, None, None)]:
            yield _csv_row((*image, *label, result.get("error")))


def _csv_row(values: Sequence[object]) -> str:
    row = io.StringIO()
    csv.writer(row, lineterminator="").writerow([csv_cell(value) for value in values])
    return row.getvalue()


class LabelTable:
    """Rows with aligned columns; widths are in terminal cells."""

    def __init__(self, names: Iterable[str], width: int | None, page_count: int = 0) -> None:
        """Measure the first columns.

        Args:
            names: Names of the images.
            width: Width of the terminal; None for rows that are never wrapped, which suit a file or pipe.
            page_count: Pages of the longest file; 0 for a table without a page column.
        """
        self._page_width = max(len(_TABLE_HEADER[1]), len(str(page_count - 1))) if page_count else 0
        longest = max(display_width(visible(name)) for name in [_TABLE_HEADER[0], *names])
        self._name_width = longest if width is None else min(longest, max(10, int(width * _MAX_NAME_SHARE)))
        taken = self._name_width + len(_GAP) + (self._page_width + len(_GAP) if page_count else 0)
        self._labels_width = None if width is None else max(_MIN_LABELS_WIDTH, width - taken)

    def header(self) -> str:
        """Return the row above all others."""
        return self._join(*_TABLE_HEADER)

    def row(self, name: str, label_names: Sequence[str], scores: Sequence[float], page_index: int | None = None) -> str:
        """Return the row of one image or page, wrapped into several lines if the labels need them."""
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
        """Add a page to a name if the table has no page column, because its file came after the measured ones."""
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
    """Shorten a path at its beginning, which paths often share."""
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


class ResultSaver:
    """A folder of results under PaddleX's names; a name that was already used gets a number."""

    def __init__(self, folder: Path, kind: SavedKind) -> None:
        """Make a saver.

        Args:
            folder: Folder of the files; made as needed.
            kind: `img` for annotated pictures, `json` for JSON files.
        """
        self._folder = folder
        self._kind = kind
        self._used: set[str] = set()

    def save(self, result: MultiLabelResult) -> Path:
        """Write the file of one result.

        Returns:
            Its path.

        Raises:
            OutputError: The file cannot be written.
            InputError: Pillow cannot decode the image.
        """
        name = result.picture_name if self._kind == "img" else result.json_name
        stem, suffix = os.path.splitext(name)
        number = 2
        while name.casefold() in self._used:
            name = f"{stem}_{number}{suffix}"
            number += 1
        self._used.add(name.casefold())
        (result.save_to_img if self._kind == "img" else result.save_to_json)(self._folder / name)
        return self._folder / name
