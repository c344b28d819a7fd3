"""Measure the speed goals against the peers in ten minutes: `make bench-quick`.

All contenders are measured in turns in one run: FP32, the same JPEG files in, labels out. Only a contender that gives
the served model's answers is measured. The ratios carry over to another machine, the figures do not. The exit status is
1 if something could not be measured, whether or not the goals are met.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from tqdm import tqdm

from benchmarks.machine import describe_machine
from benchmarks.photo_set import write_uniform_photos
from benchmarks.random_models import RANDOM_MODELS, prepare_models, repository_of
from benchmarks.speed.compare import LATENCY_SPLIT, Plan, compare_model
from benchmarks.speed.peers.engine_settings import ModelFiles
from benchmarks.speed.preprocessing import measure_preprocessing
from benchmarks.speed.quick_report import THOROUGH_MODEL, QuickReport
from benchmarks.usage import read_usage, total_pss_bytes
from mlcls.base.files import write_text
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

# Steps of the progress bar before the turns, by whether a model is measured thoroughly.
_STEPS_OF_PEERS: Final = {True: 12, False: 9}
_OTHERS_IN_TURNS: Final = {True: 6, False: 3}

# What a model takes on two cores in addition to its windows, in seconds.
_PEERS_S: Final = {True: 45, False: 65}


@dataclasses.dataclass(frozen=True)
class BenchModels:
    """Imported models and the PaddleX inference models that they come from.

    Attributes:
        repository: The model repository.
        paddlex_models: The folder with each PaddleX model in a subfolder of its name.
        names: The models.
        random_weights: Whether they were created here.
    """

    repository: Path
    paddlex_models: Path
    names: tuple[str, ...]
    random_weights: bool = False

    def files(self, name: str) -> ModelFiles:
        """Return spec, served graph and PaddleX model of one.

        Raises:
            RepositoryError: It is not imported, or was imported from another PaddleX model than the folder's.
            ModelFormatError: The folder has no PaddleX model.
        """
        version = Repository(self.repository).active(name)
        spec = version.spec
        folder = self.paddlex_models / name
        found = PaddleXModel.open(folder).make_spec(name).source_sha256
        if found != spec.source_sha256:
            raise RepositoryError(
                f"Expected {folder} to be the PaddleX model that {name} in {self.repository} was imported from, got "
                f"other files; import it again: mlcls import {folder}."
            )
        return ModelFiles(spec, version.weights("embedded"), folder)


def find_models(root: Path, paddlex_models: Path | None, names: Sequence[str]) -> BenchModels:
    """Return the imported models if their PaddleX folders are given, else models with random weights.

    Args:
        root: The model repository.
        paddlex_models: The folder of the PaddleX models; None creates models with random weights.
        names: The models.

    Raises:
        MlclsError: A model cannot be created.
    """
    if paddlex_models is not None:
        return BenchModels(root, paddlex_models, tuple(names))
    prepare_models(RANDOM_MODELS, names)
    return BenchModels(repository_of(RANDOM_MODELS), RANDOM_MODELS, tuple(names), random_weights=True)


def main() -> int:
    """Parse the arguments, measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repository", type=Path, default=Path("model_repository"), help="default: %(default)s")
    parser.add_argument(
        "--paddlex-models",
        type=Path,
        metavar="FOLDER",
        help="folder of the PaddleX models that the repository's models come from, each in a subfolder of its name; by "
        "default, models with random weights are created in build/bench and measured instead",
    )
    parser.add_argument(
        "--models", nargs="+", choices=tuple(OFFICIAL_MODELS), default=list(OFFICIAL_MODELS), metavar="MODEL"
    )
    parser.add_argument("--seconds", type=float, default=1.5, help="length of a window (default: %(default)s)")
    parser.add_argument(
        "--turns", type=int, default=2, help=f"turns of {THOROUGH_MODEL}; the others take one (default: %(default)s)"
    )
    parser.add_argument("--output", type=Path, metavar="JSON", help="file for all raw figures")
    arguments = parser.parse_args()
    if arguments.seconds <= 0 or arguments.turns < 1:
        parser.error(
            f"expected --seconds above 0 and --turns of at least 1, got {arguments.seconds} and {arguments.turns}"
        )
    try:
        names = tuple(dict.fromkeys(arguments.models))
        models = find_models(arguments.repository, arguments.paddlex_models, names)
        with tempfile.TemporaryDirectory(prefix="mlcls-bench-") as work:
            report = run_quick(models, Path(work), arguments.seconds, arguments.turns)
        print(f"\n{report.to_markdown()}")
        if arguments.output is not None:
            write_text(arguments.output, report.to_json())
    except MlclsError as error:
        print(f"quick: {error}", file=sys.stderr)
        return error.exit_code
    return 0 if report.is_complete() else 1


def run_quick(models: BenchModels, work: Path, seconds: float, turns: int) -> QuickReport:
    """Measure everything; record errors in the report.

    Args:
        models: What to measure.
        work: Folder for photos and for what peers write.
        seconds: Length of a window.
        turns: Turns of the thoroughly measured model; the others take one.
    """
    began = time.monotonic()
    report = QuickReport(describe_machine(), models.names, models.random_weights)
    photos = write_uniform_photos(work / "photos", _PHOTOS, *_PHOTO_SIZE, seed=0)
    others = tuple(name for name in models.names if name != THOROUGH_MODEL)
    with _progress(models.names, seconds, turns, report.steps_s) as progress:
        if THOROUGH_MODEL in models.names:
            with progress.record_error(report, THOROUGH_MODEL):
                _measure_thoroughly(report, models, photos, Plan(seconds, turns, True, work), progress)
        if others:
            plan = Plan(seconds, 1, False, work)
            with progress.record_error(report, "the other models"):
                _measure_others(report, models, others, photos[:_FEW_PHOTOS], plan, progress)
    print(f"Measured in {time.monotonic() - began:.0f} s.", file=sys.stderr)
    return report


def _measure_thoroughly(
    report: QuickReport, models: BenchModels, photos: Sequence[Path], plan: Plan, progress: _Progress
) -> None:
    files = models.files(THOROUGH_MODEL)
    for _ in range(_STARTS - 1):
        progress.step("start of one model")
        with _timed_server(models, (THOROUGH_MODEL,), report.ready_one_s):
            pass
    progress.step("start of one model")
    with _timed_server(models, (THOROUGH_MODEL,), report.ready_one_s) as server:
        report.comparisons[THOROUGH_MODEL] = compare_model(files, server.grpc_url, photos, plan, progress.step)
        report.memory_mb.append(total_pss_bytes(read_usage(server.pid)) / 1e6)
    progress.step("preprocess")
    report.preprocess_ms, report.pixel_digests = measure_preprocessing(files.spec, photos)


def _measure_others(
    report: QuickReport,
    models: BenchModels,
    others: Sequence[str],
    photos: Sequence[Path],
    plan: Plan,
    progress: _Progress,
) -> None:
    """Measure the other models on one server with all models, which also gives the time until six are ready."""
    progress.step("start of all models")
    six = set(models.names) == set(OFFICIAL_MODELS)
    with _timed_server(models, models.names, report.ready_six_s if six else []) as server:
        for name in others:
            with progress.record_error(report, name):
                comparison = compare_model(models.files(name), server.grpc_url, photos, plan, progress.step)
                report.comparisons[name] = comparison


@contextlib.contextmanager
def _timed_server(models: BenchModels, names: Sequence[str], ready_s: list[float]) -> Iterator[TritonServer]:
    """Yield a ready server, and add the time that it took to a list."""
    began = time.monotonic()
    with TritonServer(ServerOptions.on_free_ports(models.repository, *names)) as server:
        ready_s.append(time.monotonic() - began)
        yield server


@dataclasses.dataclass
class _Progress:
    """The progress bar, the duration of its steps, and their errors."""

    bar: tqdm
    steps_s: dict[str, float]
    current: str = ""
    began: float = 0.0

    def step(self, what: str) -> None:
        """Begin the next step."""
        self.end_step()
        self.current = what
        self.bar.set_description(what)
        self.bar.update()

    def end_step(self) -> None:
        """Record how long the current step took."""
        now = time.monotonic()
        if self.current:
            self.steps_s[self.current] = self.steps_s.get(self.current, 0.0) + now - self.began
        self.current, self.began = "", now

    @contextlib.contextmanager
    def record_error(self, report: QuickReport, what: str) -> Iterator[None]:
        """Record an error and continue."""
        try:
            yield
        except MlclsError as error:
            report.errors[what] = str(error)


@contextlib.contextmanager
def _progress(names: Sequence[str], seconds: float, turns: int, steps_s: dict[str, float]) -> Iterator[_Progress]:
    """Print the plan and show the bar; a dropped engine leaves fewer steps than planned."""
    steps, total_s = 0, 0.0
    for name in names:
        thorough = name == THOROUGH_MODEL
        windows = 1 + 2 * _OTHERS_IN_TURNS[thorough] * (turns if thorough else 1)
        if thorough:
            windows += 1 + 2 * LATENCY_SPLIT * turns
        model_s = _PEERS_S[thorough] + windows * seconds * 1.3
        print(f"{name}: up to {windows} windows of {seconds:g} s in turns, about {model_s:.0f} s", file=sys.stderr)
        steps, total_s = steps + windows + _STEPS_OF_PEERS[thorough], total_s + model_s
    print(f"In all about {total_s / 60:.0f} minutes.", file=sys.stderr)
    with tqdm(total=steps, unit=" steps", disable=None) as bar:
        progress = _Progress(bar, steps_s)
        yield progress
        progress.end_step()


if __name__ == "__main__":
    sys.exit(main())
