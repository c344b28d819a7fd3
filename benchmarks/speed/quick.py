"""Measure the speed goals against the peers in ten minutes: `make bench-quick`.

All contenders are measured in turns in one run: FP32, the same JPEG files in, labels out. Only a contender that gives
the served model's answers is measured. The ratios carry over to another machine, the figures do not. The exit status is
1 if something could not be measured, whether or not the goals are met.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from tqdm import tqdm

from benchmarks.machine import describe_machine
from benchmarks.photo_set import write_photos
from benchmarks.random_models import RANDOM_MODELS, prepare_models, repository_of
from benchmarks.speed.bench import Bench, ModelFiles
from benchmarks.speed.compare import compare_model, list_peers
from benchmarks.speed.goals import THOROUGH_MODEL, QuickReport
from benchmarks.speed.perf_analyzer import PerfAnalyzer
from benchmarks.usage import read_usage, total_pss_bytes
from mlcls.base.files import write_text
from mlcls.base.machine import format_machine
from mlcls.errors import MlclsError, RepositoryError
from mlcls.model.catalog import OFFICIAL_MODELS
from mlcls.paddle.model import PaddleXModel
from mlcls.repository.models import Repository
from mlcls.server.options import ServerOptions
from mlcls.server.process import TritonServer

_PHOTO_SIZE: Final = (480, 640)
_PHOTOS: Final = 16
# Number of photos for the other models, of which some take a second per photo.
_FEW_PHOTOS: Final = 2
# Number of starts of a server with one model; the last one is measured under load.
_STARTS: Final = 2


@dataclasses.dataclass(frozen=True)
class BenchModels:
    """Imported models, and the folder of the PaddleX models that they come from, each in a subfolder of its name."""

    repository: Path
    paddlex_models: Path

    def files(self, name: str) -> ModelFiles:
        """Return spec, served graph and PaddleX model of one.

        Raises:
            MlclsError: It is not imported, or was imported from another PaddleX model than the folder's.
        """
        version, folder = Repository(self.repository).active(name), self.paddlex_models / name
        if PaddleXModel.open(folder).make_spec(name).source_sha256 != version.spec.source_sha256:
            raise RepositoryError(
                f"Expected {folder} to be the PaddleX model that {name} in {self.repository} was imported from, got "
                f"other files; import it again: mlcls import {folder}."
            )
        return ModelFiles(version.spec, version.weights("embedded"), folder)


def main() -> int:
    """Parse the arguments, measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--repository", type=Path, default=Path("model_repository"), help="default: %(default)s")
    add(
        "--paddlex-models",
        type=Path,
        metavar="FOLDER",
        help="folder of the PaddleX models that the repository's models come from, each in a subfolder of its name; by "
        "default, models with random weights are created in build/bench and measured instead",
    )
    add("--models", nargs="+", choices=tuple(OFFICIAL_MODELS), default=list(OFFICIAL_MODELS), metavar="MODEL")
    add("--seconds", type=float, default=1.5, help="length of a measurement (default: %(default)s)")
    add("--turns", type=int, default=2, help=f"turns of {THOROUGH_MODEL}; the others take one (default: %(default)s)")
    add("--output", type=Path, metavar="JSON", help="file for all raw figures")
    options = parser.parse_args()
    if options.seconds <= 0 or options.turns < 1:
        parser.error(f"expected --seconds above 0 and --turns of at least 1, got {options.seconds} and {options.turns}")
    try:
        names = tuple(dict.fromkeys(options.models))
        if options.paddlex_models is None:
            prepare_models(RANDOM_MODELS, names)
            models = BenchModels(repository_of(RANDOM_MODELS), RANDOM_MODELS)
        else:
            models = BenchModels(options.repository, options.paddlex_models)
        with tempfile.TemporaryDirectory(prefix="mlcls-bench-") as work:
            report = run_quick(models, names, options.seconds, options.turns, Path(work))
    except MlclsError as error:
        print(f"quick: {error}", file=sys.stderr)
        return error.exit_code
    weights = "random weights" if options.paddlex_models is None else "imported weights"
    print(f"\n{report.format()}\n\n{weights}; {format_machine(describe_machine())}")
    if options.output is not None:
        document = {"machine": describe_machine(), "weights": weights, **dataclasses.asdict(report)}
        write_text(options.output, json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return 0 if report.is_complete() else 1


def run_quick(models: BenchModels, names: Sequence[str], seconds: float, turns: int, work: Path) -> QuickReport:
    """Measure everything; record errors in the report.

    Args:
        models: Where the models are.
        names: The models.
        seconds: Length of a measurement.
        turns: Turns of the thoroughly measured model; the others take one.
        work: Folder for photos and for what peers write.

    Raises:
        PerfAnalyzerError: The load generator is not installed.
    """
    began, report, analyzer = time.monotonic(), QuickReport(tuple(names)), PerfAnalyzer.find()
    photos = write_photos(work / "photos", [_PHOTO_SIZE] * _PHOTOS)
    with tqdm(unit=" steps", disable=None) as bar:

        def step(what: str) -> None:
            bar.set_description(what)
            bar.update()

        def compare(server: TritonServer, name: str, thorough: bool) -> None:
            some = photos if thorough else photos[:_FEW_PHOTOS]
            bench = Bench(models.files(name), server.grpc_url, some, work, analyzer)
            found = compare_model(bench, list_peers(thorough), seconds, turns if thorough else 1, step)
            report.comparisons[name] = found

        if THOROUGH_MODEL in names:
            with _recorded(report, THOROUGH_MODEL):
                step("start of one model")
                for _ in range(_STARTS - 1):
                    with _timed_server(models, [THOROUGH_MODEL], report.ready_one_s):
                        pass
                with _timed_server(models, [THOROUGH_MODEL], report.ready_one_s) as server:
                    compare(server, THOROUGH_MODEL, thorough=True)
                    report.memory_mb.append(total_pss_bytes(read_usage(server.pid)) / 1e6)
        others = [name for name in names if name != THOROUGH_MODEL]
        if others:  # on one server with all models, which also gives the time until six are ready
            with _recorded(report, "the other models"):
                step("start of all models")
                with _timed_server(models, names, report.ready_six_s if report.has_six else []) as server:
                    for name in others:
                        with _recorded(report, name):
                            compare(server, name, thorough=False)
    print(f"Measured in {time.monotonic() - began:.0f} s.", file=sys.stderr)
    return report


@contextlib.contextmanager
def _timed_server(models: BenchModels, names: Sequence[str], ready_s: list[float]) -> Iterator[TritonServer]:
    """Yield a ready server, and add the time that it took to a list."""
    began = time.monotonic()
    with TritonServer(ServerOptions.on_free_ports(models.repository, *names)) as server:
        ready_s.append(time.monotonic() - began)
        yield server


@contextlib.contextmanager
def _recorded(report: QuickReport, what: str) -> Iterator[None]:
    """Record an error in the report and continue."""
    try:
        yield
    except MlclsError as error:
        report.errors[what] = str(error)


if __name__ == "__main__":
    sys.exit(main())
