"""Measure the served models under many loads with NVIDIA's perf_analyzer: `make bench`.

Each model is served alone, on each engine that it has, and measured over gRPC and HTTP with each number of requests in
flight and of images per request. The output folder is complete after each load; after an interrupt, the same command
continues.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tqdm import tqdm

from benchmarks.machine import describe_machine
from benchmarks.photo_set import WEB_PHOTOS, WEB_SIZES, write_photos
from benchmarks.random_models import RANDOM_MODELS, prepare_models, repository_of
from benchmarks.speed.bench import answer_served
from benchmarks.speed.perf_analyzer import PROTOCOLS, Load, PerfAnalyzer, Windows, choose_windows, write_input_data
from benchmarks.speed.results import REPORT_FILE, Cell, ResultFolder, format_report, make_cells, make_result
from benchmarks.usage import CostMeter
from mlcls.base.files import write_text
from mlcls.base.processes import sigterm_interrupts
from mlcls.errors import MlclsError, RepositoryError
from mlcls.images.photos import list_photos
from mlcls.model.catalog import OFFICIAL_MODELS
from mlcls.repository.models import Repository
from mlcls.repository.settings import TARGETS, Target
from mlcls.server.options import ServerOptions
from mlcls.server.process import TritonServer

# Number of photos that are timed one by one.
_TIMED_PHOTOS: Final = 4


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is measured, and how.

    Attributes:
        repository: The model repository.
        cells: The loads, those of one model and engine next to each other.
        windows: When a measurement ends; slow models have longer windows.
        longest_latency_s: Loads whose answers would take longer are skipped.
        photos: What to send, in turn.
    """

    repository: Path
    cells: tuple[Cell, ...]
    windows: Windows
    longest_latency_s: float
    photos: tuple[Path, ...]


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the arguments, measure and write the report."""
    parser = _make_parser()
    options = parser.parse_args(arguments)
    if options.seconds < 0.5 or min(options.concurrency + options.batch) < 1:
        parser.error("expected --seconds of 0.5 or more, --concurrency and --batch of 1 or more")
    given = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", "-m", "benchmarks.speed.matrix", *given])
    try:
        perf_analyzer = PerfAnalyzer.find()
        with tempfile.TemporaryDirectory(prefix="mlcls-bench-") as work, sigterm_interrupts():
            plan = _make_plan(options, Path(work))
            folder = ResultFolder(options.output, _describe(options), options.restart)
            interrupted = _measure(plan, perf_analyzer, folder, Path(work))
        write_text(folder.path / REPORT_FILE, format_report(folder, command))
    except MlclsError as error:
        print(f"matrix: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:  # while models are created
        return 130
    failed = [f"{cell}: {result['note']}" for cell, result in folder.results.items() if result["status"] == "failed"]
    for text in failed:
        print(f"matrix: {text}", file=sys.stderr)
    print(f"Written to {folder.path}: {', '.join(sorted(path.name for path in folder.path.iterdir()))}")
    if interrupted:
        print("Interrupted; run the same command to continue.", file=sys.stderr)
        return 130
    return 1 if failed else 0


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--repository", type=Path, help="of imported models; default: models with random weights, made in build/bench")
    add("--models", nargs="+", metavar="MODEL", help="default: all imported models of the repository")
    add("--targets", nargs="+", choices=TARGETS, help="engines; default: embedded, and int8 if the model has it")
    add("--protocols", nargs="+", choices=PROTOCOLS, default=list(PROTOCOLS), help="default: both")
    add("--concurrency", nargs="+", type=int, default=[1, 4, 8, 16], help="requests in flight (default: 1 4 8 16)")
    add("--batch", nargs="+", type=int, default=[1, 8], help="images per request (default: 1 8)")
    add("--seconds", type=float, default=2.0, help="length of a window; three or more per load (default: %(default)s)")
    add("--deviation", type=float, default=10.0, help="most that three stable windows differ, in percent (default: 10)")
    add("--windows", type=int, default=6, help="most windows to try until three are stable (default: %(default)s)")
    add("--longest-latency", type=float, default=5.0, help="skip loads with slower answers, in seconds (default: 5)")
    add("--photos", nargs="+", type=Path, metavar="PATH", help=f"files and folders to send; default: {WEB_PHOTOS}")
    add("--output", type=Path, default=Path("output") / "bench", metavar="DIR", help="default: %(default)s")
    add("--restart", action="store_true", help="discard the results in the output folder")
    return parser


def _make_plan(options: argparse.Namespace, work: Path) -> Plan:
    root = options.repository
    if root is None:
        prepare_models(RANDOM_MODELS, options.models or tuple(OFFICIAL_MODELS))
        root = repository_of(RANDOM_MODELS)
    models = options.models or [name for name in Repository(root).models() if Repository(root).is_imported(name)]
    cells = tuple(
        cell
        for name in models
        for target in _find_targets(root, name, options.targets)
        for cell in make_cells(name, target, options.protocols, options.batch, options.concurrency)
    )
    if not cells:
        raise MlclsError(f"Expected an imported model in {root}, got none; run: mlcls import MODEL --repository {root}")
    photos = list_photos(options.photos) if options.photos else write_photos(work / "photos", WEB_SIZES)
    windows = Windows(options.seconds, options.deviation, options.windows)
    return Plan(root, cells, windows, options.longest_latency, tuple(photos))


def _find_targets(root: Path, name: str, asked: Sequence[Target] | None) -> list[Target]:
    """Return the engines in the options; else those that the model has and that run on the embedded server."""
    if asked is not None:
        return list(asked)
    targets: list[Target] = ["embedded"]
    try:
        Repository(root).active(name).weights("int8")
        targets.append("int8")
    except RepositoryError:
        pass
    return targets


def _describe(options: argparse.Namespace) -> dict[str, str]:
    """Return the conditions: only if all are the same, results are comparable and a run is continued."""
    return {
        "weights": "random" if options.repository is None else f"imported, {options.repository}",
        "photos": " ".join(map(str, options.photos)) if options.photos else WEB_PHOTOS,
        "windows": f"{options.seconds:g} s, at most {options.windows} until three differ by {options.deviation:g}%",
        **describe_machine(),
    }


def _measure(plan: Plan, perf_analyzer: PerfAnalyzer, folder: ResultFolder, work: Path) -> bool:
    """Measure what is missing; return whether this was interrupted."""
    data = write_input_data(work / "photos.json", [photo.read_bytes() for photo in plan.photos])
    pending = [cell for cell in plan.cells if not folder.is_done(cell)]
    with tqdm(total=len(plan.cells), initial=len(plan.cells) - len(pending), unit=" loads", disable=None) as bar:
        try:
            for _, cells in itertools.groupby(pending, key=lambda cell: (cell.model, cell.target)):
                _measure_served(plan, perf_analyzer, folder, data, list(cells), bar)
        except KeyboardInterrupt:
            return True
    return False


def _measure_served(
    plan: Plan, perf_analyzer: PerfAnalyzer, folder: ResultFolder, data: Path, cells: Sequence[Cell], bar: tqdm
) -> None:
    """Start a server for cells of one model and engine, and measure them; errors are recorded."""
    model, target = cells[0].model, cells[0].target
    bar.set_description(f"{model} {target}: start")
    try:
        options = dataclasses.replace(ServerOptions.on_free_ports(plan.repository, model), target=target)
        with TritonServer(options) as server:
            images_per_s = _answer_once(plan, server, model)
            urls = {"grpc": server.grpc_url, "http": server.http_url}
            expected_s: dict[tuple[int, int], float] = {}  # the same for both protocols
            for cell in cells:
                bar.set_description(str(cell))
                size = (cell.concurrency, cell.batch_size)
                latency_s = expected_s.setdefault(size, cell.concurrency * cell.batch_size / images_per_s)
                if latency_s > plan.longest_latency_s:
                    result = make_result(cell, "left out", f"an answer would take about {latency_s:.0f} s")
                else:
                    load = Load(model, urls[cell.protocol], data, *size, cell.protocol)
                    try:
                        meter = CostMeter(server, model)
                        figures = perf_analyzer.measure(load, choose_windows(plan.windows, load, images_per_s))
                        result = make_result(cell, "measured", "", figures, meter.read())
                        images_per_s = figures.images_per_s
                    except MlclsError as error:
                        result = make_result(cell, "failed", str(error))
                folder.add(cell, result)
                bar.update()
    except MlclsError as error:
        for cell in cells:
            if not folder.is_done(cell):
                folder.add(cell, make_result(cell, "failed", str(error)))


def _answer_once(plan: Plan, server: TritonServer, model: str) -> float:
    """Warm up, check that all photos are answered, and return the images per second, one after the other."""
    answer_served(server.grpc_url, model, plan.photos)
    began = time.monotonic()
    answer_served(server.grpc_url, model, plan.photos[:_TIMED_PHOTOS])
    return len(plan.photos[:_TIMED_PHOTOS]) / (time.monotonic() - began)


if __name__ == "__main__":
    sys.exit(main())
