"""The command `mlcls repository`."""

from __future__ import annotations

import argparse
import sys
from typing import Final

from mlcls.commands.options import add_repository_option

NAME: Final = "repository"
SUMMARY: Final = "Write the configurations of the model repository, or check them."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("--check", action="store_true", help="write nothing; exit with status 1 if a file is stale")
    add_repository_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Write or check the configurations."""
    from mlcls.repository.configurations import expected_specs, find_stale, write_configs
    from mlcls.repository.models import Repository
    from mlcls.repository.publishing import remove_leftovers

    repository = Repository(arguments.repository)
    specs = expected_specs(repository)
    if not arguments.check:
        with repository.lock():
            for spec in specs:
                remove_leftovers(repository, spec.name)
                for written in write_configs(repository, spec):
                    print(f"wrote {written}")
    stale = find_stale(repository, specs)
    for path, reason in stale.items():
        print(f"{repository}/{path}: {reason}", file=sys.stderr)
    if stale:
        remedy = "run `mlcls repository`" if arguments.check else "remove the files that are not generated"
        print(f"mlcls repository: {len(stale)} files are stale; {remedy}", file=sys.stderr)
        return 1
    print(f"{repository}: {len(specs)} models, all files as generated")
    return 0
