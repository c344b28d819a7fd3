"""The formats that `mlcls-client predict` prints: a table, JSON lines, CSV."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from typing import Protocol

from mlcls_client.cli.table import MEMORY_TEXT, LabelTable
from mlcls_client.escaping import csv_cell, visible_json
from mlcls_client.result import MultiLabelResult


class ResultWriter(Protocol):
    """Turns results into lines of text."""

    def lines(self, result: MultiLabelResult) -> Iterator[str]:
        """Give the lines of one result, before the first one the header."""
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
    """A row per label; an image without a label, or without a result, has one row too; no cell is a formula."""

    _HEADER = ("input_path", "page_index", "class_id", "label_name", "score", "error")

    def __init__(self) -> None:
        """Begin a file."""
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
