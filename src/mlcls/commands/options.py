"""Options that several commands share."""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Final

# Environment variable that names the model repository.
REPOSITORY_VARIABLE: Final = "MLCLS_MODEL_REPOSITORY"

if TYPE_CHECKING:
    from mlcls.server.model_control import ModelControl


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the PaddleX model to convert, `--name` and `--photos`."""
    parser.add_argument("source", metavar="MODEL", help="folder, .tar archive, URL, or name of an official model")
    parser.add_argument("--name", help="name to serve the model under (default: PaddleX's)")
    add_photos_option(parser, "photos, or folders of photos, for the check")


def add_photos_option(parser: argparse.ArgumentParser, meaning: str) -> None:
    """Add `--photos`."""
    text = f"{meaning} (default: crops of two samples)"
    parser.add_argument("--photos", type=Path, nargs="+", default=[], metavar="PATH", help=text)


def add_photo_options(parser: argparse.ArgumentParser, purpose: str) -> None:
    """Add `--photos` and `--annotations`, for `LabeledPhotos.open`."""
    add_photos_option(parser, f"photos, or folders of photos, {purpose}")
    parser.add_argument(
        "--annotations",
        type=Path,
        metavar="FILE",
        help="annotation file of an MLClsDataset (val.txt), instead of --photos; compares the mAP too",
    )


def add_control_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a command that switches a running server, for `make_control`."""
    parser.add_argument(
        "--url",
        help="HTTP API of the running server to switch, e.g. http://127.0.0.1:8000; its admin key comes from "
        "$MLCLS_ADMIN_KEY (default: change only the repository)",
    )
    parser.add_argument(
        "--ready-timeout",
        type=float,
        default=300.0,
        metavar="S",
        help="seconds that the server may take to load a model (default: %(default)s)",
    )
    parser.add_argument(
        "--keep-loaded",
        action="store_true",
        help="keep the previous version loaded, so that a rollback need not load it; costs its memory",
    )


def make_control(arguments: argparse.Namespace) -> ModelControl | None:
    """Return the control of the server at `--url`; None without the option."""
    from mlcls.server.model_control import ModelControl
    from mlcls.server.options import ADMIN_KEY_VARIABLE

    if arguments.url is None:
        return None
    return ModelControl(arguments.url, os.environ.get(ADMIN_KEY_VARIABLE), arguments.ready_timeout)


def describe_rollback(arguments: argparse.Namespace, name: str, version: int | None = None) -> str:
    """Return the command that switches back, or to a version, at the server and in the repository of this command."""
    words = ["mlcls", "rollback", name]
    if version is not None:
        words += ["--to", str(version)]
    if arguments.url is not None:
        words += ["--url", arguments.url]
    if arguments.repository != default_repository():
        words += ["--repository", str(arguments.repository)]
    return shlex.join(words)


def default_repository() -> Path:
    """Return the repository that commands take without `--repository`."""
    return Path(os.environ.get(REPOSITORY_VARIABLE, "model_repository"))


def add_repository_option(parser: argparse.ArgumentParser) -> None:
    """Add `--repository`."""
    parser.add_argument(
        "--repository",
        type=Path,
        default=default_repository(),
        metavar="DIR",
        help=f"Triton model repository (default: ${REPOSITORY_VARIABLE} or ./model_repository)",
    )
