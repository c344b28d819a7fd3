"""The command `mlcls predict`."""

from __future__ import annotations

import argparse
from typing import Final

from mlcls.errors import MissingExtraError, MlclsError

NAME: Final = "predict"
SUMMARY: Final = "Label images with a served model (the same as mlcls-client)."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    try:
        from mlcls_client.cli.predict import add_predict_arguments
    except ModuleNotFoundError:
        parser.add_argument("arguments", nargs=argparse.REMAINDER, help="see mlcls-client predict --help")
    else:
        add_predict_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the client's command."""
    try:
        from mlcls_client.cli.predict import run_predict
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith("mlcls_client"):
            raise MlclsError(
                "This needs the client, which is not installed: pip install ./client (in a checkout: make build)."
            ) from None
        raise MissingExtraError("serve", str(error.name)) from error
    return run_predict(arguments)
