"""Options that several commands have."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

# Environment variable that names the model repository.
REPOSITORY_VARIABLE: Final = "MLCLS_MODEL_REPOSITORY"


if TYPE_CHECKING:
    from mlcls.server.model_control import ModelControl


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the PaddleX model to convert, `--name` and `--photos`."""
    parser.add_argument("source", metavar="MODEL", help="a folder, a .tar, a URL, or the name of an official model")
    parser.add_argument("--name", help="name under which it is served (default: PaddleX's)")
    parser.add_argument(
        "--photos",
        type=Path,
        nargs="+",
        default=[],
        metavar="PATH",
        help="photos or folders for the check (default: samples)",
    )


def add_photo_options(parser: argparse.ArgumentParser, purpose: str) -> None:
    """Add `--photos` and `--annotations`, which `LabeledPhotos.open` takes."""
    parser.add_argument(
        "--photos",
        type=Path,
        nargs="+",
        default=[],
        metavar="PATH",
        help=f"photos, or folders of photos, {purpose} (default: crops of two samples)",
    )
    parser.add_argument(
        "--annotations",
        type=Path,
        metavar="FILE",
        help="annotation file of an MLClsDataset (val.txt) in place of --photos; mAP is compared too",
    )


def add_control_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a command that switches a running server, for `make_control`."""
    parser.add_argument(
        "--url",
        help="HTTP API of the running server to switch, http://127.0.0.1:8000 for example; its key is taken from "
        "$MLCLS_ADMIN_KEY (default: only the repository is changed)",
    )
    parser.add_argument("--ready-timeout", type=float, default=300.0, metavar="S", help="default: %(default)s")
    parser.add_argument(
        "--keep-loaded",
        action="store_true",
        help="leave the version that was active loaded in the server: going back takes no loading, at the price of its "
        "memory",
    )


def make_control(arguments: argparse.Namespace) -> ModelControl | None:
    """Return the server of `--url`."""
    from mlcls.server.model_control import ModelControl
    from mlcls.server.options import ADMIN_KEY_VARIABLE

    if arguments.url is None:
        return None
    return ModelControl(arguments.url, os.environ.get(ADMIN_KEY_VARIABLE), arguments.ready_timeout)


def add_repository_option(parser: argparse.ArgumentParser) -> None:
    """Add `--repository`."""
    parser.add_argument(
        "--repository",
        type=Path,
        default=Path(os.environ.get(REPOSITORY_VARIABLE, "model_repository")),
        metavar="DIR",
        help=f"Triton model repository (default: ${REPOSITORY_VARIABLE} or ./model_repository)",
    )
