"""The command `mlcls export`."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Final

from mlcls.commands.options import add_photos_option
from mlcls.errors import SpecError

NAME: Final = "export"
SUMMARY: Final = "Export a freshly initialized or trained model as a PaddleX inference model."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("architecture", metavar="ARCHITECTURE", help="one of the six models, see `mlcls models`")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for the inference model")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="trained .pdparams (default: fresh weights)")
    parser.add_argument(
        "--labels", type=Path, metavar="FILE", help="text file with one label per line (default: COCO's 80)"
    )
    parser.add_argument("--size", type=_parse_size, metavar="HxW", help="input height and width (default: 448x448)")
    parser.add_argument("--threshold", type=float, metavar="T", help="threshold of every label (default: 0.5)")
    parser.add_argument("--seed", type=int, default=0, help="seed of fresh weights (default: %(default)s)")
    add_photos_option(parser, "photos to adjust fresh weights to")
    parser.add_argument("--without-sigmoid", action="store_true", help="end the graph in logits")


def run(arguments: argparse.Namespace) -> int:
    """Write the model's folder."""
    from mlcls.training.export import export_model

    labels = _read_labels(arguments.labels) if arguments.labels else None
    export_model(
        arguments.architecture,
        arguments.output,
        labels=labels,
        with_sigmoid=not arguments.without_sigmoid,
        **{name: getattr(arguments, name) for name in ("size", "threshold", "weights", "seed", "photos")},
    )
    origin = f"weights of {arguments.weights}" if arguments.weights else f"freshly initialized (seed {arguments.seed})"
    label_count = "COCO's 80 labels" if labels is None else f"{len(labels)} labels"
    print(f"{arguments.output}: {arguments.architecture}, {label_count}, {origin}")
    if arguments.weights is None:
        print("Its labels mean nothing: nothing was trained.")
    return 0


def _parse_size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", text)
    if not match:
        raise argparse.ArgumentTypeError(f"expected HEIGHTxWIDTH like 448x448, or one number, got {text!r}")
    return int(match[1]), int(match[2] or match[1])


def _read_labels(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: expected a UTF-8 text file with one label per line, got: {error}.") from None
    return [line.strip() for line in lines if line.strip()]
