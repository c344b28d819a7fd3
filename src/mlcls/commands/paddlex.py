"""The command `mlcls paddlex`: PaddleX's `main.py`, with its configuration files."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

NAME: Final = "paddlex"
SUMMARY: Final = (
    "Do what a PaddleX configuration file says: check, convert and split a dataset, train, evaluate, export, predict."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options, which are those of PaddleX's `main.py`."""
    parser.add_argument(
        "-c", "--config", type=Path, required=True, metavar="FILE", help="configuration, like configs/ResNet50_ML.yaml"
    )
    parser.add_argument(
        "-o",
        "--override",
        action="append",
        default=[],
        metavar="KEY.SUB=VALUE",
        help="in place of the file's value, like Global.mode=check_dataset; may be repeated",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the configuration's mode."""
    from mlcls.paddlex.config import read_config
    from mlcls.paddlex.main import run_mode

    return run_mode(read_config(arguments.config, arguments.override))
