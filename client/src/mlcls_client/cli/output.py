"""The output of `mlcls-client predict`: a table, JSON Lines or CSV, and files in a folder."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from mlcls_client.base.text import csv_cell, visible, visible_json
from mlcls_client.result import MultiLabelResult

if TYPE_CHECKING:
    from rich.console import Console

SavedKind: TypeAlias = Literal["img", "json"]

EMPTY_TEXT: Final = "(no label above the threshold)"
FAILED_TEXT: Final = "(no result)"
MEMORY_TEXT: Final = "(from memory)"

_MAX_NAME_SHARE: Final = 0.4
_MIN_NAME_WIDTH: Final = 10


class TableWriter:
    """A row per image: in columns on a terminal, if rich is installed (extra `cli`), or else a plain line."""

    def __init__(self) -> None:
        self._console: Console | None = None
        self._name_width = 0
        if sys.stdout.isatty():
            with contextlib.suppress(ModuleNotFoundError):
                from rich.console import Console

                self._console = Console(highlight=False)

    def lines(self, result: MultiLabelResult) -> Iterator[str]:
        """Yield the lines of one result."""
        name = result.input_path or MEMORY_TEXT
        name = visible(name if result.page_index is None else f"{name}[{result.page_index}]")
        labels = [
            f"{visible(label)} {score:.3f}" for label, score in zip(result.label_names, result.scores, strict=True)
        ]
        text = FAILED_TEXT if result.error is not None else ", ".join(labels) or EMPTY_TEXT
        if self._console is None:
            yield f"{name}  {text}"
            return
        from rich.cells import cell_len
        from rich.table import Table
        from rich.text import Text

        # The widest name so far, but not more than its share.
        longest = max(_MIN_NAME_WIDTH, int(self._console.width * _MAX_NAME_SHARE))
        self._name_width = min(longest, max(self._name_width, cell_len(name)))
        row = Table.grid(padding=(0, 2, 0, 0))
        row.add_column(width=self._name_width, overflow="fold", style="bold")
        row.add_column(overflow="fold")
        row.add_row(Text(name), Text(text, style="red" if result.error is not None else ""))
        with self._console.capture() as captured:
            self._console.print(row)
        yield captured.get().removesuffix("\n")


class JsonLinesWriter:
    """A JSON object per image."""

    def lines(self, result: MultiLabelResult) -> Iterator[str]:
        """Yield the line of one result."""
        yield visible_json(json.dumps(result.json["res"], ensure_ascii=False))


class CsvWriter:
    """A row per label. An image without a label or result has one row, too. No cell is a formula."""

    _HEADER = ("input_path", "page_index", "class_id", "label_name", "score", "error")

    def __init__(self) -> None:
        self._begun = False

    def lines(self, result: MultiLabelResult) -> Iterator[str]:
        """Yield the lines of one result; before those of the first, the header."""
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


class ResultSaver:
    """A folder of results under PaddleX's names; a name that was already used gets a number."""

    def __init__(self, folder: Path, kind: SavedKind) -> None:
        """Make a saver of annotated pictures (`img`) or JSON files (`json`); the folder is made as needed."""
        self._folder = folder
        self._kind = kind
        self._used: set[str] = set()

    def save(self, result: MultiLabelResult) -> Path:
        """Write the file of one result and return its path.

        Raises:
            OutputError: The file cannot be written.
            InputError: Pillow cannot decode the image.
        """
        name = result.file_name(self._kind)
        stem, suffix = os.path.splitext(name)
        number = 2
        while name.casefold() in self._used:
            name = f"{stem}_{number}{suffix}"
            number += 1
        self._used.add(name.casefold())
        (result.save_to_img if self._kind == "img" else result.save_to_json)(self._folder / name)
        return self._folder / name
