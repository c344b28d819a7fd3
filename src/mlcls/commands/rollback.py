"""The command `mlcls rollback`."""

from __future__ import annotations

import argparse
from typing import Final

from mlcls.commands.options import add_control_options, add_repository_option, make_control

NAME: Final = "rollback"
SUMMARY: Final = "Go back to the version of a model that was active before, or to any other."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("model", metavar="NAME", help="name of a model")
    parser.add_argument(
        "--to", type=int, metavar="N", help="the version, see `mlcls versions NAME` (default: the one before)"
    )
    add_control_options(parser)
    add_repository_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Switch and say what is active now."""
    from mlcls.releases.rollout import roll_back
    from mlcls.repository.models import Repository

    control = make_control(arguments)
    repository = Repository(arguments.repository)
    rollout = roll_back(repository, arguments.model, arguments.to, control=control, keep_loaded=arguments.keep_loaded)
    where = "the repository" if control is None else control.url
    before = f", version {rollout.previous} before" if rollout.previous not in (None, rollout.version) else ""
    print(f"Version {rollout.version} of {rollout.name} is active in {where}{before}")
    return 0
