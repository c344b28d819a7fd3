"""The `mlcls` command. Each subcommand imports what it needs when it runs, so that `mlcls --help` answers at once."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Final

from mlcls import __version__
from mlcls.base.files import describe_os_error, naming
from mlcls.base.text import visible
from mlcls.commands import COMMANDS
from mlcls.errors import MlclsError

_INTERRUPTED_STATUS: Final = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand.

    Args:
        argv: Arguments; by default those of the process.

    Returns:
        0 on success, 2 for wrong usage, 130 if interrupted, else the `exit_code` of the error, mostly 1.
    """
    arguments = _build_parser().parse_args(argv)
    run: Callable[[argparse.Namespace], int] = arguments.run
    try:
        status = run(arguments)
        with naming("standard output"):
            sys.stdout.flush()  # a reader that is gone must be noticed here
        return status
    except BrokenPipeError:
        _discard_output()
        return 0
    except OSError as error:
        print(visible(f"mlcls {arguments.command}: {describe_os_error(error)}"), file=sys.stderr)
        try:
            sys.stdout.flush()
        except OSError:
            _discard_output()
        return MlclsError.exit_code
    except MlclsError as error:
        print(visible(f"mlcls {arguments.command}: {error}"), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"mlcls {arguments.command}: interrupted", file=sys.stderr)
        return _INTERRUPTED_STATUS


def _discard_output() -> None:
    """Keep Python from complaining when it flushes, on exit, what cannot be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mlcls", description="Serve PaddleX image multi-label classification models on Triton Inference Server."
    )
    parser.add_argument("--version", action="version", version=f"mlcls {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        subparser = commands.add_parser(command.NAME, help=command.SUMMARY, description=command.SUMMARY)
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
