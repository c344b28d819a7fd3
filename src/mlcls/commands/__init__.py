"""The subcommands of `mlcls`: modules with the same four names, which import what they need when they run."""

from __future__ import annotations

import argparse
from typing import Final, Protocol

from mlcls.commands import (
    build_engine,
    calibrate,
    doctor,
    evaluate,
    export,
    health,
    import_model,
    models,
    paddlex,
    predict,
    publish,
    repository,
    rollback,
    serve,
    tune,
    verify,
    versions,
)


class Command(Protocol):
    """The names that each module of this package defines."""

    @property
    def NAME(self) -> str:
        """The subcommand's name."""

    @property
    def SUMMARY(self) -> str:
        """What it does, in one line."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's options to its parser."""

    def run(self, arguments: argparse.Namespace) -> int:
        """Run the command and return its exit status."""


# In the order of `mlcls --help`.
COMMANDS: Final[tuple[Command, ...]] = (
    models,
    export,
    import_model,
    build_engine,
    verify,
    calibrate,
    evaluate,
    publish,
    rollback,
    versions,
    repository,
    tune,
    serve,
    health,
    doctor,
    predict,
    paddlex,
)
