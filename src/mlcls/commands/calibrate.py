"""The command `mlcls calibrate`: a threshold for each label, from annotated images."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mlcls.commands.options import add_control_options, add_repository_option, describe_rollback, make_control
from mlcls.errors import DatasetError, MlclsError, ThresholdError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from mlcls.evaluation.calibration_report import CalibrationReport
    from mlcls.releases.rollout import Rollout

NAME: Final = "calibrate"
SUMMARY: Final = "Fit each label's threshold on annotated images, and publish the thresholds as the next version."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.epilog = (
        "Thresholds are fitted on one part of the images and judged on the rest. They become a new version with the "
        "same engines, which is made active; `mlcls rollback` undoes this."
    )
    parser.add_argument("model", metavar="MODEL", help="name of an imported model")
    parser.add_argument(
        "--annotations", type=Path, required=True, metavar="FILE", help="annotation file of an MLClsDataset (val.txt)"
    )
    parser.add_argument(
        "--runner",
        default="onnxruntime",
        metavar="RUNNER",
        help="runner that computes the scores, see `mlcls verify` (default: %(default)s)",
    )
    goal = parser.add_mutually_exclusive_group()
    goal.add_argument("--objective", choices=("f1",), default="f1", help="maximize F1 (the default)")
    goal.add_argument("--precision", type=float, metavar="P", help="maximize recall at a precision of at least P")
    goal.add_argument("--recall", type=float, metavar="R", help="maximize precision at a recall of at least R")
    parser.add_argument(
        "--holdout",
        type=float,
        default=0.5,
        metavar="SHARE",
        help="share of the images to judge on (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the held-out choice (default: %(default)s)")
    parser.add_argument(
        "--min-images",
        type=int,
        metavar="N",
        help="fit a threshold only on at least N images with its label and N without it (default: 5)",
    )
    parser.add_argument("--version", type=int, metavar="N", help="version to calibrate (default: the active one)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder for calibration.json and calibration.png")
    parser.add_argument("--dry-run", action="store_true", help="show the thresholds without writing them")
    parser.add_argument(
        "--force", action="store_true", help="write the thresholds even if they are worse on the held-out images"
    )
    add_control_options(parser)
    add_repository_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Score, fit, show, and add a version with the new thresholds."""
    from mlcls.base.files import require_writable, write_bytes, write_text
    from mlcls.base.pictures import require_matplotlib
    from mlcls.engines.runner_selection import open_runner
    from mlcls.evaluation.calibration import MIN_IMAGES, Objective
    from mlcls.evaluation.calibration_report import calibrate
    from mlcls.evaluation.pictures import draw_calibration
    from mlcls.evaluation.scoring import score_annotated
    from mlcls.releases.rollout import publish
    from mlcls.repository.models import Repository
    from mlcls.repository.staging import RecalibratedVersion

    if arguments.output is not None:
        require_matplotlib()  # fail now, not after the scoring
        require_writable(arguments.output)
    repository, name = Repository(arguments.repository), arguments.model
    if not arguments.dry_run:
        repository.require_writable(name)
    active = repository.active(name)
    active.check()
    base = active if arguments.version is None else repository.version(name, arguments.version)
    if base != active and arguments.runner.partition("=")[0] == "served":
        raise MlclsError(
            f"Expected --version {active.number}, which is the active one, or a runner other than served, got "
            f"--version {base.number}."
        )
    spec = base.spec
    objective = Objective()
    if arguments.precision is not None:
        objective = Objective("precision", arguments.precision)
    elif arguments.recall is not None:
        objective = Objective("recall", arguments.recall)
    control = make_control(arguments)
    if control is not None:
        control.states()  # fail before the long scoring if there is no server or it does not know the key
    groups, digests = _hash_images(arguments.annotations, spec.num_labels)
    with contextlib.ExitStack() as stack:
        runner = open_runner(arguments.runner, base, stack)
        scores, targets = score_annotated(runner, arguments.annotations)
    report = calibrate(
        scores,
        targets,
        spec.labels,
        spec.thresholds,
        objective,
        holdout=arguments.holdout,
        seed=arguments.seed,
        groups=groups,
        min_images=MIN_IMAGES if arguments.min_images is None else arguments.min_images,
    )
    record = _make_record(report, arguments, digests, base.number)
    _print_report(report)
    if arguments.output is not None:
        document = {"model": name, **record, "labels": report.to_dict()["labels"]}
        write_text(arguments.output / "calibration.json", json.dumps(document, indent=2, ensure_ascii=False) + "\n")
        write_bytes(arguments.output / "calibration.png", draw_calibration(report, name))
    if arguments.dry_run or not report.changed:
        print("Nothing was written." if report.changed else "No threshold changes; nothing was written.")
        return 0
    if report.regressions and not arguments.force:
        raise ThresholdError(
            f"Expected thresholds that are no worse on the held-out images, got: {'; '.join(report.regressions)}. "
            f"Nothing was written. Add images, or pass --force."
        )
    rollout = publish(
        repository,
        RecalibratedVersion(base, report.thresholds, record),
        control=control,
        keep=None,  # the new version takes no room: its engines are hard links
        keep_loaded=arguments.keep_loaded,
        activate=base == active,
    )
    _print_rollout(rollout, arguments)
    return 0


def _hash_images(annotations: Path, num_labels: int) -> tuple[npt.NDArray[np.intp], dict[str, str]]:
    """Return a number for each image, the same for copies of one file, and digests for the record."""
    import numpy as np

    from mlcls.base.files import sha256_of
    from mlcls.dataset.annotations import read_annotations

    try:
        digests = [sha256_of(path) for path in read_annotations(annotations, num_labels).paths]
    except OSError as error:
        raise DatasetError(
            f"{error.filename}: expected an image, got a file that cannot be read: {error.strerror}."
        ) from None
    _, groups = np.unique(digests, return_inverse=True)
    together = hashlib.sha256("".join(digests).encode()).hexdigest()
    return groups.reshape(-1), {"annotations_sha256": sha256_of(annotations), "images_sha256": together}


def _make_record(
    report: CalibrationReport, arguments: argparse.Namespace, digests: dict[str, str], base: int
) -> dict[str, Any]:
    """Return the manifest's record of the thresholds."""
    from mlcls.repository.manifest import tool_versions

    overall = report.to_dict()
    return {
        "objective": str(report.objective),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "calibrated_version": base,
        "annotations": arguments.annotations.name,
        **digests,
        "runner": arguments.runner.partition("=")[0],
        "fit_images": report.fit_images,
        "held_out_images": report.held_out_images,
        "holdout": arguments.holdout,
        "seed": report.seed,
        "changed_labels": report.changed,
        "kept_labels": {label.label: label.outcome for label in report.labels if label.outcome != "fitted"},
        "before": overall["before"],
        "after": overall["after"],
        "regressions": list(report.regressions),
        "tools": tool_versions("numpy"),
    }


def _print_report(report: CalibrationReport) -> None:
    print(
        f"Thresholds for the {report.objective}, fitted on {report.fit_images} images, judged on "
        f"{report.held_out_images} others (before > after):"
    )
    print(report.to_table())
    kept = sum(label.outcome != "fitted" for label in report.labels)
    print(
        f"{report.changed} of {len(report.labels)} thresholds change; {kept} could not be fitted and stay as they are."
    )
    for text in report.price:
        print(f"Cost: {text}.")
    for text in report.regressions:
        print(f"Warning: worse on the held-out images: {text}.")


def _print_rollout(rollout: Rollout, arguments: argparse.Namespace) -> None:
    name = rollout.name
    if rollout.active != rollout.version:
        print(
            f"Version {rollout.version} of {name} has the new thresholds; version {rollout.active} stays active. "
            f"Switch: {describe_rollback(arguments, name, rollout.version)}"
        )
        return
    where = arguments.repository if arguments.url is None else arguments.url
    print(
        f"Version {rollout.version} of {name} has the new thresholds and is active in {where}, in place of version "
        f"{rollout.previous}. Undo: {describe_rollback(arguments, name)}"
    )
    if arguments.url is None:
        print(
            f"A running server without --poll keeps the old thresholds until it restarts. Switch it now: "
            f"{describe_rollback(arguments, name, rollout.version)} --url http://HOST:PORT"
        )
