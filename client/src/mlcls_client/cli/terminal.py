"""What the commands have in common: exit codes, lines on standard output and error, numbers among the arguments."""

import argparse
import os
import sys
from collections.abc import Callable
from typing import Final, TextIO

from mlcls_client.errors import InvalidRequestError, MlclsClientError
from mlcls_client.escaping import visible

EXIT_OK: Final = 0
EXIT_IMAGE_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_SERVER: Final = 3
EXIT_INTERRUPTED: Final = 130


def with_exit_code(run: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """Run a command, and tell its errors on standard error.

    Returns:
        The exit code.
    """
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
        # The reader (head, less) has gone; keep the interpreter from complaining when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_IMAGE_FAILED


def print_line(text: str) -> None:
    """Write a line to standard output."""
    _write(sys.stdout, text)


def complain(error: Exception) -> None:
    """Write an error to standard error."""
    _write(sys.stderr, visible(f"mlcls-client: {error}"))


def _write(stream: TextIO, text: str) -> None:
    """Write a line; what the stream's encoding lacks (a file name that is not UTF-8) is escaped, not an error."""
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    stream.flush()


def parse_count(text: str) -> int:
    """Read a number of 1 or more."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text}")
    return number


def parse_seconds(text: str) -> float:
    """Read a time above 0."""
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"expected seconds above 0, got {text}")
    return number
