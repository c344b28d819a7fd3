"""The command `mlcls paddlex`: PaddleX's `main.py`, with its configuration files."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

NAME: Final = "paddlex"
SUMMARY: Final = (
    "Run a PaddleX configuration file: check, convert or split a dataset, train, evaluate, export or predict."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options, which are those of PaddleX's `main.py`."""
    parser.add_argument(
        "-c", "--config", type=Path, required=True, metavar="FILE", help="configuration, e.g. configs/ResNet50_ML.yaml"
    )
    parser.add_argument(
        "-o",
        "--override",
        action="append",
        default=[],
        metavar="KEY.SUB=VALUE",
        help="override a value of the file, e.g. Global.mode=check_dataset; may be repeated",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the configuration's mode."""
    from mlcls.paddlex.config import read_config
    from mlcls.paddlex.main import run_mode

    run_mode(read_config(arguments.config, arguments.override))
    return 0
