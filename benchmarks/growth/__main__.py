"""Measure how cost grows with models, clients, photo size, batch and labels: `make bench-growth`.

A closed loop in this process sends photos to PP-LCNet with random weights on the engine `embedded`, so the load
generator shares the cores. Each axis is measured upward and downward in turn; otherwise, a machine that slows down
would look like growth. Each axis is written as soon as it is done.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from benchmarks.growth.axes import AXIS_NAMES, REDUCED, Axis, Point, make_axis, needed_models
from benchmarks.growth.load import GrowthFigures, StartedServer
from benchmarks.growth.models import prepare_growth_models
from benchmarks.growth.report import draw_axis, format_csv, format_json, format_table
from benchmarks.machine import describe_machine
from benchmarks.random_models import repository_of
from mlcls.base.files import write_text
from mlcls.base.processes import sigterm_interrupts
from mlcls.errors import ConfigError, MlclsError
from mlcls.repository.models import Repository
from mlcls.repository.publishing import change_settings
from mlcls.repository.settings import ModelSettings


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the arguments, measure and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--axes", nargs="+", choices=AXIS_NAMES, default=list(AXIS_NAMES), help="default: all")
    add("--seconds", type=float, default=5.0, help="length of a window (default: %(default)s)")
    add("--turns", type=int, default=2, help="windows for each point (default: %(default)s)")
    add("--models-folder", type=Path, default=Path("build") / "growth", metavar="DIR", help="default: %(default)s")
    add("--output", type=Path, default=Path("output") / "growth", metavar="DIR", help="default: %(default)s")
    options = parser.parse_args(arguments)
    if options.seconds <= 0 or options.turns < 1:
        parser.error(f"expected --seconds above 0 and --turns of at least 1, got {options.seconds}, {options.turns}")
    command = shlex.join(["python", "-m", "benchmarks.growth", *(sys.argv[1:] if arguments is None else arguments)])
    names = [name for name in AXIS_NAMES if name in options.axes]
    began = time.monotonic()
    failed: dict[str, MlclsError] = {}
    try:
        prepare_growth_models(options.models_folder, needed_models(names))
        root = repository_of(options.models_folder)
        with_reduced = "megapixels" in names and _reduce_decoding(root)
        conditions = {
            "command": command,
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "window": f"{options.seconds:g} s, {options.turns} turns",
            **describe_machine(),
        }
        with tempfile.TemporaryDirectory(prefix="mlcls-growth-") as work, sigterm_interrupts():
            for name in names:
                try:
                    axis = make_axis(name, Path(work), with_reduced)
                    measured = measure_axis(root, axis, options.seconds, options.turns)
                except MlclsError as reason:
                    failed[name] = reason
                    continue
                write_axis(options.output, axis, measured, conditions)
                print(format_table(axis, measured), flush=True)
    except MlclsError as error:
        print(f"growth: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"growth: interrupted; finished axes are in {options.output}, continue with --axes.", file=sys.stderr)
        return 130
    print(f"Measured in {(time.monotonic() - began) / 60:.0f} minutes; written to {options.output}", file=sys.stderr)
    for name, why in failed.items():
        print(f"growth: axis {name} was not measured: {why}", file=sys.stderr)
    return 1 if failed else 0


def measure_axis(root: Path, axis: Axis, seconds: float, turns: int) -> dict[Point, list[GrowthFigures]]:
    """Measure all points of an axis, upward and downward in turn; points with the same models share a server.

    Raises:
        MlclsError: A server does not start, or a request fails.
    """
    measured: dict[Point, list[GrowthFigures]] = {point: [] for point in axis.points}
    order = [point for turn in range(turns) for point in (axis.points if turn % 2 == 0 else axis.points[::-1])]
    started: StartedServer | None = None
    models: tuple[str, ...] = ()
    try:
        for point in tqdm(order, desc=axis.name, unit=" windows", disable=None):
            if started is None or point.load.models != models:
                if started is not None:
                    started.server.stop()
                models = point.load.models
                started = StartedServer.start(root, models)
            measured[point].append(started.measure(point.load, seconds))
    finally:
        if started is not None:
            started.server.stop()
    return measured


def write_axis(
    folder: Path, axis: Axis, measured: Mapping[Point, Sequence[GrowthFigures]], conditions: Mapping[str, str]
) -> None:
    """Write `AXIS.json`, `AXIS.csv`, `AXIS.md` and `AXIS.svg`."""
    write_text(folder / f"{axis.name}.json", format_json(axis, measured, conditions))
    write_text(folder / f"{axis.name}.csv", format_csv(measured))
    write_text(folder / f"{axis.name}.md", format_table(axis, measured))
    write_text(folder / f"{axis.name}.svg", draw_axis(axis, measured))


def _reduce_decoding(root: Path) -> bool:
    """Have `REDUCED` decode large JPEG files at a reduced scale; return whether this version can."""

    def change(settings: ModelSettings) -> ModelSettings:
        document = {**json.loads(settings.to_json()), "images": {"jpeg_oversampling": 2}}
        return ModelSettings.from_json(json.dumps(document))

    try:
        change_settings(Repository(root), REDUCED.name, change)
    except ConfigError as error:
        print(f"growth: decoding at a reduced scale is skipped: {error}", file=sys.stderr)
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
