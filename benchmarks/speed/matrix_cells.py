"""Cells of the matrix, what was measured in each, and the files that keep it."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from benchmarks.speed.perf_analyzer import PROTOCOLS, PerfFigures, Protocol, StepTimes
from benchmarks.usage import ServedCost
from mlcls.base.files import write_text
from mlcls.errors import MlclsError
from mlcls.repository.settings import Target

RESULTS_FILE: Final = "results.json"
TABLE_FILE: Final = "results.csv"
_SCHEMA_VERSION: Final = 1

# `left out`: an answer would take too long. `failed`: to be tried again.
Status = Literal["measured", "left out", "failed"]


@dataclasses.dataclass(frozen=True, order=True)
class Cell:
    """One load on one served model.

    Attributes:
        model: Name of the model.
        target: Which engine.
        protocol: Over gRPC or HTTP.
        batch_size: Images in a request.
        concurrency: Requests in flight.
    """

    model: str
    target: Target
    protocol: Protocol
    batch_size: int
    concurrency: int

    def __str__(self) -> str:
        """For progress bars and messages."""
        return f"{self.model} {self.target} {self.protocol} {self.concurrency} x {self.batch_size}"


@dataclasses.dataclass(frozen=True)
class CellResult:
    """What became of a cell: figures, or why there are none.

    Attributes:
        cell: The cell.
        status: Which of the two.
        measured_at: Date and time.
        figures: Latency and throughput, as perf_analyzer measured them; None where there are none.
        cost: What the server took for it; None where there are no figures.
        note: Why there are none; empty where there are.
    """

    cell: Cell
    status: Status
    measured_at: str
    figures: PerfFigures | None = None
    cost: ServedCost | None = None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return as the JSON file has it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> CellResult:
        """From the JSON file.

        Raises:
            KeyError: Something is missing.
            TypeError: Something is unknown.
        """
        figures, cost = document["figures"], document["cost"]
        if figures is not None:
            steps = {name: StepTimes(**times) for name, times in figures["steps"].items()}
            figures = PerfFigures(**{**figures, "steps": steps})
        return cls(
            Cell(**document["cell"]),
            document["status"],
            document["measured_at"],
            figures,
            None if cost is None else ServedCost(**cost),
            document["note"],
        )


def make_cells(
    model: str, target: Target, protocols: Sequence[Protocol], batches: Sequence[int], concurrencies: Sequence[int]
) -> Iterator[Cell]:
    """Yield all loads on a served model, light ones first, the two protocols of a load next to each other in time."""
    for batch_size in sorted(set(batches)):
        for concurrency in sorted(set(concurrencies)):
            for protocol in (each for each in PROTOCOLS if each in protocols):
                yield Cell(model, target, protocol, batch_size, concurrency)


class ResultFolder:
    """Results on the disk, complete after each cell, so that an interrupted run is continued.

    Attributes:
        path: The folder.
        conditions: How and where it was measured; results of other conditions are not mixed in.
        results: By cell, in the order of measurement.
    """

    def __init__(self, path: Path, conditions: Mapping[str, str], restart: bool = False) -> None:
        """Open a folder, or begins one.

        Args:
            path: The folder.
            conditions: See above.
            restart: Whether results that are there are to be dropped.

        Raises:
            MlclsError: Its results were measured in other conditions, or cannot be read.
        """
        self.path = path
        self.conditions = dict(conditions)
        self.results: dict[Cell, CellResult] = {}
        if (path / RESULTS_FILE).exists() and not restart:
            self._read()

    def add(self, result: CellResult) -> None:
        """Keep a result; the files are written at once."""
        self.results[result.cell] = result
        document = {
            "schema_version": _SCHEMA_VERSION,
            "conditions": self.conditions,
            "results": [each.to_dict() for each in self.results.values()],
        }
        write_text(self.path / RESULTS_FILE, json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        write_text(self.path / TABLE_FILE, format_csv(list(self.results.values())))

    def _read(self) -> None:
        path = self.path / RESULTS_FILE
        advice = "take another --output, or drop them with --restart"
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            if document["schema_version"] != _SCHEMA_VERSION:
                raise ValueError(f"schema_version {document['schema_version']}")
            found = document["conditions"]
            results = [CellResult.from_dict(each) for each in document["results"]]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise MlclsError(f"{path}: expected results of this benchmark, got: {error!r}; {advice}.") from None
        if found != self.conditions:
            names = [name for name in {**found, **self.conditions} if found.get(name) != self.conditions.get(name)]
            differences = ", ".join(f"{name} {found.get(name)!r}, now {self.conditions.get(name)!r}" for name in names)
            raise MlclsError(f"{path}: expected results of the same conditions, got {differences}; {advice}.")
        self.results = {result.cell: result for result in results}


def format_csv(results: Sequence[CellResult]) -> str:
    """Return one row for each cell, empty if it was not measured. Steps have their part of the model's name."""
    rows = [_row(result) for result in results]
    columns = list(dict.fromkeys(name for row in sorted(rows, key=len, reverse=True) for name in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def steps_of(result: CellResult) -> dict[str, StepTimes]:
    """Return times by step, `preprocess` first, in the order in which an image goes through them."""
    steps = {} if result.figures is None else result.figures.steps
    short = {name.removeprefix(f"{result.cell.model}_"): times for name, times in steps.items()}
    order = ("preprocess", "engine", "postprocess")
    return dict(sorted(short.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order)))


def _row(result: CellResult) -> dict[str, str]:
    row = {name: str(value) for name, value in dataclasses.asdict(result.cell).items()}
    row |= {"status": result.status, "measured_at": result.measured_at, "note": result.note}
    if result.figures is not None:
        figures = dataclasses.asdict(result.figures)
        row |= {name: _format(value) for name, value in figures.items() if name != "steps"}
    for step, times in steps_of(result).items():
        row |= {f"{step}_{name}": _format(value) for name, value in dataclasses.asdict(times).items()}
    if result.cost is not None:
        row |= {"server_pss_mb": _format(result.cost.pss_mb), "core_ms_per_image": _format(result.cost.total_core_ms)}
        row |= {f"{name}_core_ms_per_image": _format(value) for name, value in result.cost.core_ms_per_image.items()}
    return row


def _format(value: float | bool) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "" if math.isnan(value) else f"{value:.6g}"
