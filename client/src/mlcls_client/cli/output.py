"""What the commands write: lines, errors and exit codes; tables, JSON Lines and CSV; files; a progress bar."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TextIO, TypeAlias, TypeVar

from mlcls_client.base.files import FileNames
from mlcls_client.base.text import csv_cell, visible, visible_json
from mlcls_client.errors import InvalidRequestError, MlclsClientError, OutputError
from mlcls_client.result import MultiLabelResult

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

Arguments = TypeVar("Arguments")
SavedKind: TypeAlias = Literal["img", "json"]

EXIT_OK: Final = 0
EXIT_IMAGE_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_SERVER: Final = 3
EXIT_OUTPUT: Final = 4
EXIT_INTERRUPTED: Final = 130

_MAX_NAME_SHARE: Final = 0.4
_MIN_NAME_WIDTH: Final = 10


class _StandardOutputError(Exception):
    """Standard output cannot be written; the cause is an OSError."""


def with_exit_code(run: Callable[[Arguments], int], arguments: Arguments) -> int:
    """Run a command, write its errors to standard error, and return the exit code."""
    if sys.stderr is None:  # the caller has closed it
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    if sys.stdout is None:
        complain(OutputError("Cannot write to standard output, which is closed."))
        return EXIT_OUTPUT
    try:
        exit_code = run(arguments)
        with _mapped_output_errors():
            sys.stdout.flush()
        return exit_code
    except MlclsClientError as error:
        complain(error)
        return EXIT_USAGE if isinstance(error, InvalidRequestError) else EXIT_SERVER
    except KeyboardInterrupt:
        _write(sys.stderr, "mlcls-client: interrupted")
        return EXIT_INTERRUPTED
    except _StandardOutputError as error:
        # Writing what is left would fail again when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error.__cause__, BrokenPipeError):  # the reader (head, less) has what it wants
            return EXIT_OK
        complain(error)
        return EXIT_OUTPUT


@contextlib.contextmanager
def _mapped_output_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _StandardOutputError(f"Cannot write to standard output: {error.strerror or error}.") from error


def print_line(text: str) -> None:
    """Write a line to standard output."""
    with _mapped_output_errors():
        _write(sys.stdout, text)


def complain(*errors: Exception) -> None:
    """Write errors to standard error."""
    for error in errors:
        with contextlib.suppress(OSError):
            _write(sys.stderr, visible(f"mlcls-client: {error}"))


def _write(stream: TextIO, text: str) -> None:
    """Write a line. Characters that the stream cannot encode (a file name that is not UTF-8) are escaped."""
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    stream.flush()


class ProgressBar:
    """A progress bar that counts images (rich, extra `cli`), or nothing. A context manager."""

    def __init__(self, wanted: bool | None, count: Callable[[], int | None]) -> None:
        """Prepare a bar of `count()` images; None wants one if standard error is a terminal and rich is installed.

        Raises:
            InvalidRequestError: A bar is wanted, and rich is not installed.
        """
        self._bar: Progress | None = None
        if wanted is False or (wanted is None and not sys.stderr.isatty()):
            return
        try:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn
        except ModuleNotFoundError as error:
            if wanted:
                raise InvalidRequestError(
                    "A progress bar needs rich, which is not installed: pip install 'mlcls-client[cli]'."
                ) from error
            return
        columns = (BarColumn(), MofNCompleteColumn(), "images", TimeElapsedColumn(), TimeRemainingColumn())
        console = Console(stderr=True)
        self._bar = Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False)
        self._task = self._bar.add_task("", total=count())

    def advance(self) -> None:
        """Count one more image."""
        if self._bar is not None:
            self._bar.advance(self._task)

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Hide the bar while something else is written to the terminal."""
        if self._bar is not None:
            self._bar.stop()
        yield
        if self._bar is not None:
            self._bar.start()

    def __enter__(self) -> ProgressBar:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop the bar; it stays visible."""
        if self._bar is not None:
            self._bar.live.transient = False
            self._bar.stop()


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
        name = result.input_path or "(from memory)"
        name = visible(name if result.page_index is None else f"{name}[{result.page_index}]")
        labels = [
            f"{visible(label)} {score:.3f}" for label, score in zip(result.label_names, result.scores, strict=True)
        ]
        text = ", ".join(labels) or "(no label above the threshold)" if result.error is None else "(no result)"
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
        columns = (result.class_ids.tolist(), result.label_names, result.scores.tolist())
        labels: list[tuple[object, ...]] = list(zip(*columns, strict=True))
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
        self._names = FileNames()

    def save(self, result: MultiLabelResult) -> Path:
        """Write the file of one result and return its path.

        Raises:
            OutputError: The file cannot be written.
            InputError: Pillow cannot decode the image.
        """
        path = self._names.choose(self._folder, result.file_name(self._kind), object())
        (result.save_to_img if self._kind == "img" else result.save_to_json)(path)
        return path
