"""The command `mlcls publish`."""

from __future__ import annotations

import argparse
from typing import Final

from mlcls.commands.import_model import print_report
from mlcls.commands.options import (
    add_control_options,
    add_repository_option,
    add_source_arguments,
    describe_rollback,
    make_control,
)
from mlcls.errors import RepositoryError

NAME: Final = "publish"
SUMMARY: Final = "Import a model as the next version of the one that is served, and switch to it."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_source_arguments(parser)
    add_control_options(parser)
    parser.add_argument(
        "--keep", type=int, default=3, metavar="N", help="versions to keep in the repository (default: %(default)s)"
    )
    parser.add_argument(
        "--stage", action="store_true", help="add the version without switching to it; see --to of `mlcls rollback`"
    )
    add_repository_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Publish a version and print which one is active."""
    from mlcls.releases.importing import convert_model
    from mlcls.releases.rollout import publish
    from mlcls.repository.models import Repository

    least = 2 if arguments.keep_loaded else 1
    if arguments.keep < least:
        raise RepositoryError(
            f"Expected --keep {least} or more{' with --keep-loaded' * arguments.keep_loaded}, got {arguments.keep}."
        )
    control = make_control(arguments)
    if control is not None:
        control.states()  # fail before the long conversion if there is no server or it does not know the key
    repository = Repository(arguments.repository)
    print(f"Converting {arguments.source} and comparing it with Paddle ...", flush=True)
    with convert_model(arguments.source, repository, name=arguments.name, photos=arguments.photos) as (report, staged):
        print_report(report)
        options = {"keep": arguments.keep, "keep_loaded": arguments.keep_loaded, "activate": not arguments.stage}
        rollout = publish(repository, staged, control=control, **options)
    if rollout.active != rollout.version:
        print(
            f"Version {rollout.version} of {rollout.name} is in {repository}; version {rollout.active} stays "
            f"active. Switch: {describe_rollback(arguments, rollout.name, rollout.version)}"
        )
        return 0
    where = "the repository" if control is None else control.url
    print(f"Version {rollout.version} of {rollout.name} is active in {where}", end="")
    undo = f", in place of version {rollout.previous}. Undo: {describe_rollback(arguments, rollout.name)}"
    print(undo if rollout.previous else "")
    if rollout.removed:
        print(f"Removed from the repository: version {', '.join(map(str, rollout.removed))}")
    return 0
