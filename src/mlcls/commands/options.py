"""Options that several commands have."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Final

#: Environment variable that names the model repository.
REPOSITORY_VARIABLE: Final = "MLCLS_MODEL_REPOSITORY"


def add_repository_option(parser: argparse.ArgumentParser) -> None:
    """Adds `--repository`."""
    parser.add_argument(
        "--repository",
        type=Path,
        default=Path(os.environ.get(REPOSITORY_VARIABLE, "model_repository")),
        metavar="DIR",
        help=f"Triton model repository (default: ${REPOSITORY_VARIABLE} or ./model_repository)",
    )
