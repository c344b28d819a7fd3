"""`mlcls-client predict`: label files, folders, URLs and standard input; print and save the results."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final, get_args

from mlcls_client.cli.arguments import add_request_arguments, add_server_arguments, open_model, parse_count
from mlcls_client.cli.output import (
    EXIT_IMAGE_FAILED,
    EXIT_OK,
    CsvWriter,
    JsonLinesWriter,
    ProgressBar,
    ResultSaver,
    SavedKind,
    TableWriter,
    complain,
    print_line,
    with_exit_code,
)
from mlcls_client.errors import InputError, InvalidRequestError, MlclsClientError, OutputError
from mlcls_client.inputs.encoding import ArrayFormat
from mlcls_client.inputs.sources import ImageSource, count_images, iterate_sources
from mlcls_client.prediction import MAX_CONCURRENCY
from mlcls_client.transport.connection import DEFAULT_RETRIES
from mlcls_client.transport.contract import Threshold, encode_threshold

SUMMARY: Final = "Label images and print the results."

STDIN: Final = "-"
LIST_PREFIX: Final = "@"

_WRITERS: Final[dict[str, type[TableWriter | JsonLinesWriter | CsvWriter]]] = {
    "table": TableWriter,
    "jsonl": JsonLinesWriter,
    "csv": CsvWriter,
}

EXIT_CODES: Final = """\
exit codes:
  0    all images answered
  1    some images failed; the reasons are on standard error, the others are answered (--fail-on-error: those before)
  2    wrong usage, or a request that the server rejects
  3    server unreachable, not ready, without this model, too slow, or failing
  4    standard output cannot be written
  130  interrupted
"""


def add_predict_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `predict` to a parser, for `run_predict`. `mlcls predict` uses both, too."""
    parser.epilog = EXIT_CODES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("model", metavar="MODEL", help="name of the model, e.g. PP-LCNet_x1_0_ML")
    add(
        "input",
        metavar="INPUT",
        nargs="+",
        help="image, PDF or TIFF file, folder to search for these, or http(s) URL; - for a file on standard input; "
        "@FILE for a file with one INPUT per line, @- for such lines on standard input",
    )
    add_server_arguments(parser)
    add_request_arguments(parser, DEFAULT_RETRIES)
    add("--batch-size", type=parse_count, default=1, metavar="N", help="images per request (default: %(default)s)")
    add(
        "--concurrency",
        type=parse_count,
        metavar="N",
        help=f"requests in flight, at most {MAX_CONCURRENCY} (default: 16, fewer for large batches)",
    )
    add(
        "--threshold",
        type=_parse_threshold,
        metavar="T",
        help='keep labels above this score: a number, or JSON such as \'{"default": 0.5, "person": 0.8}\' '
        "(default: the model's own)",
    )
    add("--top-k", type=parse_count, metavar="K", help="keep at most K of these labels, those with the highest scores")
    add(
        "--array-format",
        choices=get_args(ArrayFormat),
        default="png",
        help="how to send pages of PDF files (default: %(default)s)",
    )
    add(
        "--format",
        choices=list(_WRITERS),
        default="table",
        help="print a table, a JSON object per image, or a CSV row per label (default: %(default)s)",
    )
    add("--json", action="store_const", const="jsonl", dest="format", help="the same as --format jsonl")
    add("--save-img", "--save", type=Path, metavar="DIR", help="write an annotated picture per image to this folder")
    add("--save-json", type=Path, metavar="DIR", help="write a JSON file per image to this folder")
    add("--fail-on-error", action="store_true", help="stop at the first image that fails")
    add(
        "--request-id",
        metavar="ID",
        help="prefix of the request ids in the server's log and traces: ID-0, ID-1, ... (default: random)",
    )
    add(
        "--progress",
        action=argparse.BooleanOptionalAction,
        help="show a progress bar on standard error (default: if that is a terminal and rich is installed)",
    )


def run_predict(args: argparse.Namespace) -> int:
    """Print and save the labels of images, according to `add_predict_arguments`; return the exit code."""
    return with_exit_code(_predict, args)


def _predict(args: argparse.Namespace) -> int:
    if sum(given in (STDIN, LIST_PREFIX + STDIN) for given in args.input) > 1:
        raise InvalidRequestError("Expected standard input once, got several of - and @-.")
    folders: tuple[tuple[Path | None, SavedKind], ...] = ((args.save_img, "img"), (args.save_json, "json"))
    savers = [ResultSaver(folder, kind) for folder, kind in folders if folder is not None]
    writer = _WRITERS[args.format]()
    has_list = any(given.startswith(LIST_PREFIX) for given in args.input)
    exit_code = EXIT_OK
    with (
        open_model(args, args.timeout, args.retries) as model,
        ProgressBar(args.progress, lambda: None if has_list else count_images(args.input)) as progress,
    ):
        results = model.predict(
            _iterate_inputs(args),
            args.batch_size,
            args.threshold,
            on_error="yield",
            top_k=args.top_k,
            concurrency=args.concurrency,
            array_format=args.array_format,
            request_id=args.request_id,
        )
        pause = progress.pause if sys.stdout.isatty() else contextlib.nullcontext
        for result in results:
            errors: list[MlclsClientError] = [] if result.error is None else [result.error]
            with pause():
                for line in writer.lines(result):
                    print_line(line)
            for saver in savers if result.error is None else ():
                try:
                    saver.save(result)
                except (InputError, OutputError) as error:
                    errors.append(error)
            if errors:
                exit_code = EXIT_IMAGE_FAILED
                with progress.pause():
                    complain(*errors)
            progress.advance()
            if args.fail_on_error and exit_code != EXIT_OK:
                break
    return exit_code


def _iterate_inputs(args: argparse.Namespace) -> Iterator[ImageSource]:
    for given in args.input:
        if given == STDIN:
            for source in iterate_sources(sys.stdin.buffer.read(), array_format=args.array_format):
                yield replace(source, input_path="stdin")
        elif given.startswith(LIST_PREFIX):
            yield from iterate_sources(_read_lines(given.removeprefix(LIST_PREFIX)), array_format=args.array_format)
        else:
            yield from iterate_sources(given, array_format=args.array_format)


def _read_lines(path: str) -> Iterator[str]:
    """Yield lines as they arrive: `find ... | mlcls-client predict MODEL @-` starts before the list is complete."""
    try:
        with contextlib.nullcontext(sys.stdin.buffer) if path == STDIN else Path(path).open("rb") as file:
            for line in file:
                if stripped := line.strip(b"\r\n"):
                    yield os.fsdecode(stripped)
    except OSError as error:
        raise InvalidRequestError(f"Cannot read the list {path!r}: {error.strerror or error}.") from error


def _parse_threshold(text: str) -> Threshold:
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
