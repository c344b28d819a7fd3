"""What the commands show in a terminal: lines, errors, exit codes and the progress bar."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final, TextIO

from mlcls_client.base.text import visible
from mlcls_client.errors import InvalidRequestError, MlclsClientError

if TYPE_CHECKING:
    from rich.progress import Progress

EXIT_OK: Final = 0
EXIT_IMAGE_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_SERVER: Final = 3
EXIT_INTERRUPTED: Final = 130


def with_exit_code(run: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """Run a command, write its errors to standard error, and return the exit code."""
    try:
        exit_code = run(args)
        sys.stdout.flush()
        return exit_code
    except InvalidRequestError as error:
        complain(error)
        return EXIT_USAGE
    except MlclsClientError as error:
        complain(error)
        return EXIT_SERVER
    except KeyboardInterrupt:
        _write(sys.stderr, "mlcls-client: interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader (head, less) has quit; keep the interpreter from complaining when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_IMAGE_FAILED


def print_line(text: str) -> None:
    """Write a line to standard output."""
    _write(sys.stdout, text)


def complain(*errors: Exception) -> None:
    """Write errors to standard error."""
    for error in errors:
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
