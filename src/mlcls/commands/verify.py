"""The command `mlcls verify`: run the gate on any two runners."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
from pathlib import Path
from typing import Final

from mlcls.commands.options import add_photo_options, add_repository_option

NAME: Final = "verify"
SUMMARY: Final = "Compare two runners of a model on photos, with the gate that every engine has to pass."

# Options that override a limit of the precision, with what each one limits; see `Limits`.
_LIMIT_OPTIONS: Final = {
    "max_difference": "difference of a score",
    "max_mean_difference": "mean difference of the scores",
    "max_row_difference": "difference between the candidate's answers to one image in different batches",
    "max_flip_rate": "share of label decisions that flip",
    "max_map_drop": "drop of the mAP",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.epilog = (
        "A runner is KIND or KIND=WHERE: paddle=FOLDER, onnxruntime[=FILE], openvino[=FILE], openvino-bf16[=FILE], "
        "tensorrt[=FILE], tensorrt-rtx=FILE, served[=HOST:PORT]. Exits with status 1 if a limit is exceeded, or if the "
        "photos are too alike to judge."
    )
    parser.add_argument("model", metavar="MODEL", help="name of an imported model")
    parser.add_argument(
        "--reference", default="onnxruntime", metavar="RUNNER", help="runner to compare with (default: %(default)s)"
    )
    parser.add_argument(
        "--candidate", default="openvino", metavar="RUNNER", help="runner to judge (default: %(default)s)"
    )
    add_photo_options(parser, "to compare on")
    parser.add_argument(
        "--precision",
        choices=("fp32", "fp16", "int8"),
        default="fp32",
        help="precision that sets the limits (default: %(default)s)",
    )
    for option, limited in _LIMIT_OPTIONS.items():
        parser.add_argument(
            f"--{option.replace('_', '-')}",
            type=float,
            metavar="X",
            help=f"limit on the {limited} (default: that of --precision)",
        )
    parser.add_argument("--json", type=Path, metavar="FILE", help="file for the full report")
    add_repository_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Compare two runners and print a table; return 0 if the candidate passed, else 1."""
    from mlcls.base.files import require_writable, write_text
    from mlcls.dataset.photos import LabeledPhotos
    from mlcls.engines.gate import LIMITS, PROBED_IMAGES, run_gate
    from mlcls.engines.runner_selection import open_runner
    from mlcls.images.photos import photo_images
    from mlcls.repository.models import Repository

    if arguments.json is not None:
        require_writable(arguments.json.parent)
    model = Repository(arguments.repository).active(arguments.model)
    model.check()
    photos = LabeledPhotos.open(arguments.photos, arguments.annotations, model.spec.num_labels)
    images = photo_images(photos.paths, PROBED_IMAGES)
    given = {name: getattr(arguments, name) for name in _LIMIT_OPTIONS if getattr(arguments, name) is not None}
    limits = dataclasses.replace(LIMITS[arguments.precision], **given)
    with contextlib.ExitStack() as stack:
        reference = open_runner(arguments.reference, model, stack)
        candidate = open_runner(arguments.candidate, model, stack)
        report = run_gate(reference, candidate, images, model.spec.thresholds, limits, photos.targets)
    if arguments.json is not None:
        write_text(arguments.json, json.dumps(report.to_dict(), indent=2) + "\n")
    print(report)
    print(report.to_table())
    failures = list(report.failures)
    if report.is_blind:
        failures.append(
            f"the scores of two photos differ by {report.spread:.1e} only, so swapped answers would pass; give "
            f"different photos of the model's labels"
        )
    for failure in failures:
        print(f"FAILED  {failure}", file=sys.stderr)
    if not failures:
        print("PASSED")
    return 1 if failures else 0
