"""The command `mlcls import`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Final

from mlcls.commands.options import add_repository_option

NAME: Final = "import"
SUMMARY: Final = "Convert a PaddleX inference model, check it against Paddle and put it into the model repository."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("source", metavar="MODEL", help="a folder, a .tar, a URL, or the name of an official model")
    parser.add_argument("--name", help="name under which it is served (default: PaddleX's)")
    parser.add_argument(
        "--photos",
        type=Path,
        nargs="+",
        default=[],
        metavar="PATH",
        help="photos or folders for the check (default: samples)",
    )
    add_repository_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Imports a model and says what was found."""
    from mlcls.paddlex_import import import_model

    print(f"Converting {arguments.source} and comparing it with Paddle ...", flush=True)
    report = import_model(arguments.source, arguments.repository, name=arguments.name, photos=arguments.photos)
    spec = report.spec
    print(
        f"{spec.name}: {spec.num_labels} labels, {spec.transform.height}x{spec.transform.width}, "
        f"source ended in {'a sigmoid, cut off' if spec.source_activation == 'sigmoid' else 'logits'}"
    )
    print(report.parity)
    if report.parity.is_blind:
        print(
            f"The model hardly tells the photos apart (scores differ by {report.parity.spread:.1e} at most), so that "
            f"this comparison says little. Is it trained? Give photos of its labels with --photos.",
            file=sys.stderr,
        )
    print(f"Written to {arguments.repository}. Serve it: mlcls serve {spec.name}")
    return 0
