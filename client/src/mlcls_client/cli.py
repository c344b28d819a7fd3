"""The `mlcls-client` command.

Exit codes: 0 all images answered; 1 some image failed, its reason is on standard error and the others are answered;
2 wrong usage or a request that the server refuses; 3 no usable server: not reachable, not ready, no such model, no
answer in time, or a failure of its own.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TextIO

from mlcls_client.contract import Threshold, encode_threshold
from mlcls_client.errors import InputError, InvalidRequestError, MlclsClientError, OutputError
from mlcls_client.inputs import ImageSource, iterate_sources
from mlcls_client.result import MultiLabelResult
from mlcls_client.server_arguments import add_server_arguments, add_tries_argument, open_model
from mlcls_client.table import MEMORY_TEXT, LabelTable
from mlcls_client.transport import DEFAULT_TIMEOUT_S

EXIT_OK = 0
EXIT_IMAGE_FAILED = 1
EXIT_USAGE = 2
EXIT_SERVER = 3
EXIT_INTERRUPTED = 130

_WAIT_TIMEOUT_S = 60.0
# One readiness call while waiting; a server that accepts connections and does not answer must not use up the time.
_READINESS_TIMEOUT_S = 5.0

_EXIT_CODES = """\
exit codes:
  0  all images answered
  1  some image failed; its reason is on standard error, the others are answered
  2  wrong usage, or a request that the server refuses
  3  server unreachable, not ready, without this model, too slow, or failing
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: arguments after the program's name; None for the process's own.

    Returns:
        The exit code.
    """
    try:
        args = _make_parser().parse_args(argv)
    except SystemExit as stop:  # argparse ends --help with 0 and wrong usage with 2
        return stop.code if isinstance(stop.code, int) else EXIT_USAGE
    run: Callable[[argparse.Namespace], int] = args.run
    return run(args)


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mlcls-client", description="Ask a Triton server that serves PaddleX multi-label models."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    predict = commands.add_parser(
        "predict",
        help="labels of images",
        description="Print the labels of images.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_predict_arguments(predict)
    predict.set_defaults(run=run_predict)
    wait = commands.add_parser(
        "wait", help="wait until a model is ready", description="Wait until a model is ready (exit 0) or not (exit 3)."
    )
    wait.add_argument("model", metavar="MODEL", help="name of the model, e.g. PP-LCNet_x1_0_ML")
    add_server_arguments(wait)
    wait.add_argument(
        "--timeout", type=_seconds, default=_WAIT_TIMEOUT_S, metavar="S", help="how long to wait (default: %(default)g)"
    )
    wait.set_defaults(run=run_wait)
    return parser


def add_predict_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a parser the arguments of `predict`, for `run_predict`; another command can offer the same this way."""
    parser.add_argument("model", metavar="MODEL", help="name of the model, e.g. PP-LCNet_x1_0_ML")
    parser.add_argument(
        "input",
        metavar="INPUT",
        nargs="+",
        help="image, PDF or TIFF file, folder that is searched for these, or http(s) URL",
    )
    add_server_arguments(parser)
    add_tries_argument(parser)
    parser.add_argument(
        "--batch-size", type=_positive_int, default=1, metavar="N", help="images per request (default: %(default)s)"
    )
    parser.add_argument(
        "--threshold",
        type=_threshold,
        metavar="T",
        help='labels above this score: a number, or JSON such as \'{"default": 0.5, "person": 0.8}\' '
        "(default: the model's own)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON lines, one object per image")
    parser.add_argument("--save", type=Path, metavar="DIR", help="write annotated pictures into this folder")
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=DEFAULT_TIMEOUT_S,
        metavar="S",
        help="time limit of one request with its retries, seconds (default: %(default)g)",
    )


def run_predict(args: argparse.Namespace) -> int:
    """Print and save the labels of images, as the arguments of `add_predict_arguments` say.

    Returns:
        The exit code.
    """
    return _with_exit_code(_predict, args)


def run_wait(args: argparse.Namespace) -> int:
    """Wait until a model is ready.

    Returns:
        The exit code.
    """
    return _with_exit_code(_wait, args)


def _predict(args: argparse.Namespace) -> int:
    saver = None if args.save is None else _PictureSaver(args.save)
    exit_code = EXIT_OK
    with open_model(args, args.timeout, args.retries) as model:
        sources: Iterable[ImageSource] = iterate_sources(args.input)
        table = None
        if not args.json:
            # The table's columns are as wide as what is in them, so all names are wanted before the first row.
            sources = list(sources)
            table = _make_table(sources)
        results = model.predict(sources, args.batch_size, args.threshold, on_error="yield")
        for number, result in enumerate(results):
            if result.error is not None:
                exit_code = EXIT_IMAGE_FAILED
                _complain(result.error)
            if table is None:
                _print(json.dumps(result.json["res"], ensure_ascii=False))
            else:
                if number == 0:
                    _print(table.header())
                _print(_row(table, result))
            if saver is not None and result.error is None:
                try:
                    saver.save(result)
                except (InputError, OutputError) as error:
                    exit_code = EXIT_IMAGE_FAILED
                    _complain(error)
    return exit_code


def _make_table(sources: Sequence[ImageSource]) -> LabelTable:
    names = [source.input_path or MEMORY_TEXT for source in sources]
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    indexes = [source.page_index for source in sources if source.page_index is not None]
    return LabelTable(names, width, page_count=max(indexes, default=-1) + 1)


def _row(table: LabelTable, result: MultiLabelResult) -> str:
    name = result.input_path or MEMORY_TEXT
    if result.error is not None:
        return table.failed_row(name, result.page_index)
    return table.row(name, result.label_names, result.scores, result.page_index)


def _wait(args: argparse.Namespace) -> int:
    with open_model(args, min(args.timeout, _READINESS_TIMEOUT_S)) as model:
        model.wait_until_ready(args.timeout)
    return EXIT_OK


class _PictureSaver:
    """Saves under PaddleX's names; a name that this run has used already gets a number."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._used: set[str] = set()

    def save(self, result: MultiLabelResult) -> None:
        name = result.picture_name
        stem, suffix = os.path.splitext(name)
        number = 2
        while name.casefold() in self._used:
            name = f"{stem}_{number}{suffix}"
            number += 1
        self._used.add(name.casefold())
        result.save_to_img(self._folder / name)


def _with_exit_code(run: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    try:
        exit_code = run(args)
        sys.stdout.flush()
        return exit_code
    except InvalidRequestError as error:
        _complain(error)
        return EXIT_USAGE
    except MlclsClientError as error:
        _complain(error)
        return EXIT_SERVER
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader (head, less) has gone; keep the interpreter from complaining when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_IMAGE_FAILED


def _print(text: str) -> None:
    _write(sys.stdout, text)


def _complain(error: Exception) -> None:
    _write(sys.stderr, f"mlcls-client: {error}")


def _write(stream: TextIO, text: str) -> None:
    """Write a line; what the stream's encoding lacks (a file name that is not UTF-8) is escaped, not an error."""
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    stream.flush()


def _positive_int(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text}")
    return number


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"expected seconds above 0, got {text}")
    return number


def _threshold(text: str) -> Threshold:
    try:
        threshold: Threshold = json.loads(text)
        encode_threshold(threshold)
    except (ValueError, InvalidRequestError) as error:
        raise argparse.ArgumentTypeError(
            f"expected a number, or JSON of a dict or list, got {text!r}: {error}"
        ) from None
    if threshold is None:
        raise argparse.ArgumentTypeError("expected a number, or JSON of a dict or list, got null")
    return threshold
