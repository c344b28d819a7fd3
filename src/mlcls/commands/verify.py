"""The command `mlcls verify`: the gate, by hand, between any two runners."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mlcls.commands.options import add_photo_options, add_repository_option

if TYPE_CHECKING:
    from mlcls.engines.gate import GateReport, Limits

NAME: Final = "verify"
SUMMARY: Final = "Compare two runners of a model on photos: the gate that every engine passes."

# Options that replace a limit of the precision.
_LIMIT_OPTIONS: Final = ("max_difference", "max_mean_difference", "max_row_difference", "max_flip_rate", "max_map_drop")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.epilog = (
        "A runner is KIND or KIND=WHERE: paddle=FOLDER, onnxruntime[=FILE], openvino[=FILE], openvino-bf16[=FILE], "
        "tensorrt[=FILE], tensorrt-rtx=FILE, served[=HOST:PORT]. Exit status 1 where a limit "
        "is not kept or the photos cannot tell."
    )
    parser.add_argument("model", metavar="MODEL", help="name of an imported model")
    parser.add_argument("--reference", default="onnxruntime", metavar="RUNNER", help="default: %(default)s")
    parser.add_argument("--candidate", default="openvino", metavar="RUNNER", help="default: %(default)s")
    add_photo_options(parser, "to compare on")
    parser.add_argument(
        "--precision", choices=("fp32", "fp16", "int8"), default="fp32", help="whose limits hold (default: %(default)s)"
    )
    for option in _LIMIT_OPTIONS:
        parser.add_argument(f"--{option.replace('_', '-')}", type=float, metavar="X", help="instead of the precision's")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the whole report here")
    add_repository_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Compare, print a table, and tell by the exit status whether the candidate passed."""
    from mlcls.base.files import write_text
    from mlcls.dataset.photos import LabeledPhotos
    from mlcls.engines.gate import PROBED_IMAGES, run_gate
    from mlcls.engines.runner_selection import open_runner
    from mlcls.images.photos import photo_images
    from mlcls.repository.models import Repository

    model = Repository(arguments.repository).active(arguments.model)
    model.check()
    photos = LabeledPhotos.open(arguments.photos, arguments.annotations, model.spec.num_labels)
    images = photo_images(photos.paths, PROBED_IMAGES)
    with contextlib.ExitStack() as stack:
        reference = open_runner(arguments.reference, model, stack)
        candidate = open_runner(arguments.candidate, model, stack)
        report = run_gate(
            reference, candidate, images, model.spec.thresholds, _choose_limits(arguments), photos.targets
        )
    if arguments.json is not None:
        write_text(arguments.json, json.dumps(report.to_dict(), indent=2) + "\n")
    print(report)
    print(report.to_table())
    return _judge(report)


def _choose_limits(arguments: argparse.Namespace) -> Limits:
    from mlcls.engines.gate import LIMITS

    given = {name: getattr(arguments, name) for name in _LIMIT_OPTIONS if getattr(arguments, name) is not None}
    return dataclasses.replace(LIMITS[arguments.precision], **given)


def _judge(report: GateReport) -> int:
    for failure in report.failures:
        print(f"FAILED  {failure}", file=sys.stderr)
    if report.is_blind:
        print(
            f"FAILED  the scores of two photos differ by {report.spread:.1e} only: answers exchanged between them "
            f"would pass; give photos of the model's labels, none like another",
            file=sys.stderr,
        )
    if report.failures or report.is_blind:
        return 1
    print("PASSED")
    return 0
