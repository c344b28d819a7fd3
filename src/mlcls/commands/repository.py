"""The command `mlcls repository`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Final

from mlcls.commands.options import add_repository_option

NAME: Final = "repository"
SUMMARY: Final = "Write the configurations of the model repository, or check them."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where a file is stale")
    add_repository_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Write or check the configurations."""
    from mlcls.base.files import folder_lock
    from mlcls.repository import models as repository
    from mlcls.repository.publishing import remove_leftovers

    root: Path = arguments.repository
    specs = repository.expected_specs(root)
    if not arguments.check:
        with folder_lock(root):
            for spec in specs:
                remove_leftovers(root, spec.name)
                for path in repository.write_configs(root, spec):
                    print(f"wrote {path}")
    stale = repository.find_stale(root, specs)
    for file in stale:
        print(f"{root}/{file}", file=sys.stderr)
    if stale:
        remedy = "run `mlcls repository`" if arguments.check else "remove what is not generated"
        print(f"mlcls repository: {len(stale)} files are stale; {remedy}", file=sys.stderr)
        return 1
    print(f"{root}: {len(specs)} models, all files as generated")
    return 0
