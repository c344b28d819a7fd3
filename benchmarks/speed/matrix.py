"""Measure the served models under many loads with NVIDIA's perf_analyzer: `make bench`.

Each model is served alone, on each engine that it has, and measured over gRPC and HTTP with each number of requests in
flight and of images per request. The output folder is complete after each load; after an interrupt, the same command
continues.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tqdm import tqdm

from benchmarks.machine import describe_machine
from benchmarks.photo_set import WEB_PHOTOS, write_web_photos
from benchmarks.random_models import RANDOM_MODELS, prepare_models, repository_of
from benchmarks.speed.matrix_cells import Cell, CellResult, ResultFolder, Status, make_cells
from benchmarks.speed.matrix_report import REPORT_FILE, format_report
from benchmarks.speed.peers.served import ServedEnsemble
from benchmarks.speed.perf_analyzer import PROTOCOLS, Load, PerfAnalyzer, Protocol, Windows, write_input_data
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

# For a slow model, windows are longer: at least this many requests end in each.
_LEAST_REQUESTS: Final = 6
# A window must be this many times longer than the slowest answer.
_WINDOW_TO_LATENCY: Final = 1.3
# Number of photos that are timed one by one.
_TIMED_PHOTOS: Final = 4

_ROOT: Final = Path(__file__).resolve().parents[2]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is measured, and how.

    Attributes:
        repository: The model repository.
        served: Models and their engines.
        protocols: gRPC, HTTP or both.
        batches: Numbers of images per request.
        concurrencies: Numbers of requests in flight.
        windows: When a measurement ends; slow models have longer windows.
        longest_latency_s: Loads whose answers would take longer are skipped.
        photos: What to send, in turn.
    """

    repository: Path
    served: tuple[tuple[str, Target], ...]
    protocols: tuple[Protocol, ...]
    batches: tuple[int, ...]
    concurrencies: tuple[int, ...]
    windows: Windows
    longest_latency_s: float
    photos: tuple[Path, ...]

    def cells(self, model: str, target: Target) -> list[Cell]:
        """Return all loads of one served model."""
        return list(make_cells(model, target, self.protocols, self.batches, self.concurrencies))


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the arguments, measure and write the report."""
    parser = _make_parser()
    options = parser.parse_args(arguments)
    if options.seconds < 0.5 or min(options.concurrency + options.batch) < 1:
        parser.error("expected --seconds of 0.5 or more, --concurrency and --batch of 1 or more")
    command = shlex.join(
        ["python", "-m", "benchmarks.speed.matrix", *(sys.argv[1:] if arguments is None else arguments)]
    )
    try:
        perf_analyzer = PerfAnalyzer.find(_ROOT)
        with tempfile.TemporaryDirectory(prefix="mlcls-bench-") as work, sigterm_interrupts():
            plan = _make_plan(options, Path(work))
            folder = ResultFolder(options.output, _describe(options, perf_analyzer), options.restart)
            interrupted = _measure(plan, perf_analyzer, folder, Path(work))
        write_text(folder.path / REPORT_FILE, format_report(folder, command))
    except MlclsError as error:
        print(f"matrix: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:  # while models are created
        return 130
    failed = [result for result in folder.results.values() if result.status == "failed"]
    for result in failed:
        print(f"matrix: {result.cell}: {result.note}", file=sys.stderr)
    print(f"Written to {folder.path}: {', '.join(sorted(path.name for path in folder.path.iterdir()))}")
    if interrupted:
        print("Interrupted; run the same command to continue.", file=sys.stderr)
        return 130
    return 1 if failed else 0


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add(
        "--repository",
        type=Path,
        help="repository of imported models; by default, models with random weights are created in build/bench",
    )
    add("--models", nargs="+", metavar="MODEL", help="default: all imported models of the repository")
    add("--targets", nargs="+", choices=TARGETS, help="engines; default: embedded, and int8 if the model has it")
    add("--protocols", nargs="+", choices=PROTOCOLS, default=list(PROTOCOLS), help="default: both")
    add("--concurrency", nargs="+", type=int, default=[1, 4, 8, 16], help="requests in flight (default: 1 4 8 16)")
    add("--batch", nargs="+", type=int, default=[1, 8], help="images per request (default: 1 8)")
    add("--seconds", type=float, default=2.0, help="length of a window; three or more per load (default: %(default)s)")
    add(
        "--deviation",
        type=float,
        default=10.0,
        help="most that three stable windows differ, in percent (default: %(default)s)",
    )
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
    served = tuple((name, target) for name in models for target in _find_targets(root, name, options.targets))
    if not served:
        raise MlclsError(f"Expected an imported model in {root}, got none; run: mlcls import MODEL --repository {root}")
    return Plan(
        root,
        served,
        tuple(options.protocols),
        tuple(options.batch),
        tuple(options.concurrency),
        Windows(options.seconds, options.deviation, options.windows),
        options.longest_latency,
        tuple(list_photos(options.photos) if options.photos else write_web_photos(work / "photos")),
    )


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


def _describe(options: argparse.Namespace, perf_analyzer: PerfAnalyzer) -> dict[str, str]:
    """Return the conditions: only if all are the same, results are comparable and a run is continued."""
    return {
        "weights": "random" if options.repository is None else f"imported, {options.repository}",
        "photos": " ".join(map(str, options.photos)) if options.photos else WEB_PHOTOS,
        "windows": f"{options.seconds:g} s, at most {options.windows} until three differ by {options.deviation:g}%",
        "perf_analyzer": perf_analyzer.read_version(),
        **describe_machine(),
    }


def _measure(plan: Plan, perf_analyzer: PerfAnalyzer, folder: ResultFolder, work: Path) -> bool:
    """Measure what is missing; return whether this was interrupted."""
    data = write_input_data(work / "photos.json", [photo.read_bytes() for photo in plan.photos])
    cells = [cell for model, target in plan.served for cell in plan.cells(model, target)]
    done = [cell for cell in cells if _is_done(folder, cell)]
    with tqdm(total=len(cells), initial=len(done), unit=" loads", disable=None) as bar:
        try:
            for model, target in plan.served:
                pending = [cell for cell in plan.cells(model, target) if not _is_done(folder, cell)]
                if pending:
                    bar.set_description(f"{model} {target}: start")
                    _measure_served(plan, perf_analyzer, folder, data, pending, bar)
        except KeyboardInterrupt:
            return True
    return False


def _is_done(folder: ResultFolder, cell: Cell) -> bool:
    return cell in folder.results and folder.results[cell].status != "failed"


def _measure_served(
    plan: Plan, perf_analyzer: PerfAnalyzer, folder: ResultFolder, data: Path, cells: Sequence[Cell], bar: tqdm
) -> None:
    """Start a server for cells of one model and engine, and measure them; errors are recorded."""

    def add(cell: Cell, status: Status, **found: object) -> None:
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        folder.add(CellResult(cell, status, now, **found))  # type: ignore[arg-type]  # as its fields are
        bar.update()

    model, target = cells[0].model, cells[0].target
    pending = list(cells)
    try:
        options = dataclasses.replace(ServerOptions.on_free_ports(plan.repository, model), target=target)
        with TritonServer(options) as server:
            images_per_s = _answer_once(plan, server, model)
            urls = {"grpc": server.grpc_url, "http": server.http_url}
            expected_s: dict[tuple[int, int], float] = {}  # the same for both protocols
            while pending:
                cell = pending.pop(0)
                bar.set_description(str(cell))
                images = cell.concurrency * cell.batch_size
                latency_s = expected_s.setdefault((cell.concurrency, cell.batch_size), images / images_per_s)
                if latency_s > plan.longest_latency_s:
                    add(cell, "left out", note=f"an answer would take about {latency_s:.0f} s")
                    continue
                load = Load(model, cell.protocol, urls[cell.protocol], data, cell.concurrency, cell.batch_size)
                try:
                    meter = CostMeter(server, model)
                    figures = perf_analyzer.measure(load, _choose_windows(plan, cell, images_per_s))
                    add(cell, "measured", figures=figures, cost=meter.read())
                    images_per_s = figures.images_per_s
                except MlclsError as error:
                    add(cell, "failed", note=str(error))
    except MlclsError as error:
        for cell in pending:
            add(cell, "failed", note=str(error))


def _answer_once(plan: Plan, server: TritonServer, model: str) -> float:
    """Warm up, check that all photos are answered, and return the images per second, one after the other."""
    served = ServedEnsemble(server.grpc_url, Repository(plan.repository).active(model).spec, plan.photos)
    served.answer(plan.photos)
    timed = plan.photos[:_TIMED_PHOTOS]
    began = time.monotonic()
    served.answer(timed)
    return len(timed) / (time.monotonic() - began)


def _choose_windows(plan: Plan, cell: Cell, images_per_s: float) -> Windows:
    """Return windows that are long enough for several requests."""
    requests_per_s = images_per_s / cell.batch_size
    least_s = max(_LEAST_REQUESTS / requests_per_s, _WINDOW_TO_LATENCY * cell.concurrency / requests_per_s)
    return dataclasses.replace(plan.windows, window_s=max(plan.windows.window_s, least_s))


if __name__ == "__main__":
    sys.exit(main())
