"""The command `mlcls tune`."""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from mlcls.base.processes import sigterm_interrupts
from mlcls.commands.options import add_repository_option
from mlcls.errors import ConfigError, MissingExtraError, MlclsError, TuningError
from mlcls.repository.settings import TARGETS

if TYPE_CHECKING:
    from mlcls.model.spec import ModelSpec
    from mlcls.tuning.search import Outcome, Search

NAME: Final = "tune"
SUMMARY: Final = "Measure which instances, threads and queue delay serve a model best on this machine."

# Most photos that are sent, spread over those that were given.
_MAX_PHOTOS: Final = 64

# Measurements that a time budget is meant for, and the bounds of one measurement.
_WINDOWS: Final = 200
_MIN_WINDOW_S: Final = 0.5
_MAX_WINDOW_S: Final = 6.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.epilog = (
        "Exits with status 1 if no candidate meets the target; the repository then stays as it is, as with --dry-run "
        "or after an interrupt. Run nothing else on the machine meanwhile."
    )
    parser.add_argument("model", metavar="MODEL", help="name of an imported model")
    parser.add_argument("--target", choices=TARGETS, default="embedded", help="engine to tune (default: %(default)s)")
    goal = parser.add_mutually_exclusive_group()
    goal.add_argument(
        "--p99-ms",
        type=float,
        default=150.0,
        metavar="MS",
        help="target for the 99th percentile of the latency, in milliseconds (default: %(default)g)",
    )
    goal.add_argument("--throughput", action="store_true", help="maximize throughput, whatever the latency")
    parser.add_argument(
        "--concurrency",
        type=int,
        nargs="+",
        default=[],
        metavar="N",
        help="requests in flight to measure with (default: found by measuring)",
    )
    parser.add_argument("--minutes", type=float, default=10.0, metavar="M", help="time budget (default: %(default)g)")
    parser.add_argument(
        "--photos",
        type=Path,
        nargs="+",
        default=[],
        metavar="PATH",
        help="photos or folders to send; their size decides what decoding costs (default: samples of 640x427)",
    )
    parser.add_argument("--dry-run", action="store_true", help="measure without changing the repository")
    parser.add_argument("--reset", action="store_true", help="restore the target's defaults without measuring")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="folder for the report if the repository stays as it is (default: output/tune/MODEL)",
    )
    parser.add_argument(
        "--tritonserver",
        type=Path,
        metavar="DIR",
        help="Triton to use instead of the embedded one, e.g. /opt/tritonserver in NVIDIA's container",
    )
    add_repository_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Search for settings and write them, or reset them.

    Raises:
        ConfigError: An option is out of its range.
        RepositoryError: The model cannot be served.
        ServerError: The model cannot be served with the default settings.
        TuningError: No candidate meets the target, or the time was too short for a comparison.
    """
    return _reset(arguments) if arguments.reset else _tune(arguments)


def _tune(arguments: argparse.Namespace) -> int:
    from mlcls.base.machine import describe_machine, read_cores
    from mlcls.repository.models import Repository
    from mlcls.repository.publishing import change_settings
    from mlcls.repository.settings import DEFAULT_MODEL_SETTINGS, DEFAULT_SETTINGS, TuningRecord
    from mlcls.server.installation import embedded_installation, system_installation
    from mlcls.tuning.comparison import Goal
    from mlcls.tuning.report import describe_outcome, format_candidates, report_name
    from mlcls.tuning.search import Search
    from mlcls.tuning.search_space import list_concurrencies, list_knobs
    from mlcls.tuning.served_candidate import measure_served, show_progress, start_load

    _check_options(arguments, DEFAULT_MODEL_SETTINGS.queue.max_queue_size)
    repository, name, target = Repository(arguments.repository), arguments.model, arguments.target
    folder = arguments.tritonserver
    installation = embedded_installation() if folder is None else system_installation(folder)
    version = repository.active(name)
    version.check()
    version.weights(target)
    if not arguments.dry_run:
        repository.require_writable(name)
    images, photos = _read_photos(arguments.photos, version.spec)
    cores, budget_s = read_cores(), arguments.minutes * 60
    window_s = min(max(budget_s / _WINDOWS, _MIN_WINDOW_S), _MAX_WINDOW_S)
    date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    circumstances = {
        "model": name,
        "version": version.number,
        "target": target,
        "machine": describe_machine(),
        "cores": cores,
        "photos": photos,
        "window_s": window_s,
        "budget_s": budget_s,
        "date": date,
    }
    goal = Goal(None if arguments.throughput else arguments.p99_ms, tuple(sorted(set(arguments.concurrency))))
    current = repository.settings(name).of(target)
    # the precision changes the answers, so the user chooses it, not the search
    start = msgspec.structs.replace(DEFAULT_SETTINGS[target], engine_precision=current.engine_precision)
    print(f"Looking for {goal}: {name} on {target}, {cores} cores, {photos}, about {arguments.minutes:g} minutes.")
    with (
        sigterm_interrupts(),
        start_load(version.spec, images, cores, window_s) as load,
        show_progress(budget_s) as progress,
    ):
        measure = measure_served(version, target, installation, load, progress)
        search = Search(measure, goal, list_knobs(target, cores), list_concurrencies(target, cores), budget_s)
        try:
            outcome = search.run(start, [current])
        except BaseException:
            if any(candidate.turns for candidate in search.candidates.values()):
                _save(arguments, _render(search, None, circumstances))
            raise
    print(format_candidates(search))
    for line in describe_outcome(outcome):
        print(line)
    files = _render(search, outcome, circumstances)
    if outcome.status == "missed" or arguments.dry_run:
        _save(arguments, files)
        if outcome.status == "missed":
            raise TuningError(f"{outcome.reason}.")
        return 0
    record = TuningRecord(cores, date, report_name(target))
    changed = change_settings(
        repository, name, lambda settings: settings.with_target(target, outcome.settings, record), files
    )
    print(f"Wrote {', '.join(str(arguments.repository / name / file) for file in ('serving.json', *files))}.")
    print(f"{len(changed)} configurations changed; restart a running server to use them.")
    return 0


def _reset(arguments: argparse.Namespace) -> int:
    from mlcls.repository.models import Repository
    from mlcls.repository.publishing import change_settings, remove_wrong_settings
    from mlcls.tuning.report import report_name

    repository, name, target = Repository(arguments.repository), arguments.model, arguments.target
    if remove_wrong_settings(repository, name):
        print("Removed an invalid serving.json, with the settings of all targets.")
    evidence = {report_name(target, suffix): None for suffix in (".json", ".png")}
    changed = change_settings(repository, name, lambda settings: settings.without_target(target), evidence)
    print(f"{name} has the default settings of the target {target}; {len(changed)} configurations changed.")
    return 0


def _check_options(arguments: argparse.Namespace, max_concurrency: int) -> None:
    if not 0 < arguments.p99_ms <= 60_000:
        raise ConfigError(f"Expected --p99-ms above 0 and at most 60000, got {arguments.p99_ms:g}.")
    if not 0 < arguments.minutes <= 24 * 60:
        raise ConfigError(f"Expected --minutes above 0 and at most {24 * 60}, got {arguments.minutes:g}.")
    for concurrency in arguments.concurrency:
        if not 1 <= concurrency <= max_concurrency:
            raise ConfigError(
                f"Expected --concurrency 1 to {max_concurrency}, since the queue holds no more, got {concurrency}."
            )


def _read_photos(paths: Sequence[Path], spec: ModelSpec) -> tuple[list[bytes], str]:
    """Return the photos to send, after decoding each, and a description of them."""
    from mlcls.errors import ImageError
    from mlcls.images.photos import list_photos, sample_photo_paths
    from mlcls.images.transforms import preprocess

    try:
        files = list_photos(paths) if paths else sample_photo_paths()
    except MissingExtraError as error:
        raise MlclsError(f"{error} Or give photos of your own with --photos.") from None
    chosen = files[:: -(-len(files) // _MAX_PHOTOS)]
    images = []
    for file in chosen:
        try:
            images.append(file.read_bytes())
            preprocess(images[-1], spec.transform)
        except (ImageError, OSError) as error:
            raise ImageError(f"{file}: {error}") from None
    kilobytes = sum(map(len, images)) / len(images) / 1e3
    what = f"{len(images)} of {len(files)} photos" if paths else f"{len(images)} sample photos"
    return images, f"{what} of {kilobytes:.0f} kB on average"


def _render(search: Search, outcome: Outcome | None, circumstances: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the report and its plot, by file name; without matplotlib, print a warning and leave the plot out."""
    from mlcls.tuning.report import draw_search, make_report, report_name

    target, processor = circumstances["target"], circumstances["machine"]["processor"]
    files = {report_name(target): (json.dumps(make_report(search, outcome, circumstances), indent=2) + "\n").encode()}
    title = f"{circumstances['model']}, {target}: {circumstances['cores']} cores of {processor}"
    try:
        files[report_name(target, ".png")] = draw_search(search, outcome, title)
    except MissingExtraError as error:
        print(f"Warning: no plot: {error}", file=sys.stderr)
    return files


def _save(arguments: argparse.Namespace, files: dict[str, bytes]) -> None:
    from mlcls.base.files import write_bytes

    folder: Path = arguments.output or Path("output") / "tune" / arguments.model
    for name, content in files.items():
        write_bytes(folder / name, content)
    print(f"The repository is unchanged; the report is in {folder}.")
