"""The command `mlcls import`."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Final

from mlcls.commands.options import add_repository_option, add_source_arguments

if TYPE_CHECKING:
    from mlcls.releases.importing import ImportReport

NAME: Final = "import"
SUMMARY: Final = "Convert a PaddleX inference model, check it against Paddle and put it into the model repository."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_source_arguments(parser)
    parser.add_argument(
        "--replace", action="store_true", help="where it has several versions, remove them all and start again with one"
    )
    add_repository_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Import a model and say what was found."""
    from mlcls.releases.importing import import_model
    from mlcls.repository.models import Repository

    print(f"Converting {arguments.source} and comparing it with Paddle ...", flush=True)
    report = import_model(
        arguments.source,
        Repository(arguments.repository),
        name=arguments.name,
        photos=arguments.photos,
        replace_versions=arguments.replace,
    )
    print_report(report)
    print(f"Written to {arguments.repository}. Serve it: mlcls serve {report.spec.name}")
    return 0


def print_report(report: ImportReport) -> None:
    """Say what a conversion found."""
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
