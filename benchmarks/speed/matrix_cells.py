"""Cells of the matrix, their results, and the files that keep them."""

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

# `left out`: an answer would take too long. `failed`: to be retried.
Status = Literal["measured", "left out", "failed"]


@dataclasses.dataclass(frozen=True, order=True)
class Cell:
    """One load on one served model.

    Attributes:
        model: Name of the model.
        target: The engine.
        protocol: gRPC or HTTP.
        batch_size: Images per request.
        concurrency: Requests in flight.
    """

    model: str
    target: Target
    protocol: Protocol
    batch_size: int
    concurrency: int

    def __str__(self) -> str:
        """Return a text for progress bars and messages."""
        return f"{self.model} {self.target} {self.protocol} {self.concurrency} x {self.batch_size}"


@dataclasses.dataclass(frozen=True)
class CellResult:
    """The result of a cell: figures, or why there are none.

    Attributes:
        cell: The cell.
        status: Whether it was measured.
        measured_at: Date and time.
        figures: Latency and throughput as measured by perf_analyzer; None if it was not measured.
        cost: What the server used; None if there are no figures.
        note: Why there are no figures, or empty.
    """

    cell: Cell
    status: Status
    measured_at: str
    figures: PerfFigures | None = None
    cost: ServedCost | None = None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the result as in the JSON file."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> CellResult:
        """Return the result from the JSON file.

        Raises:
            KeyError: A field is missing.
            TypeError: A field is unknown.
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
    """Yield all loads of a served model, light ones first, and both protocols of a load one after the other."""
    for batch_size in sorted(set(batches)):
        for concurrency in sorted(set(concurrencies)):
            for protocol in (each for each in PROTOCOLS if each in protocols):
                yield Cell(model, target, protocol, batch_size, concurrency)


class ResultFolder:
    """Results on disk, complete after each cell, so that an interrupted run can continue.

    Attributes:
        path: The folder.
        conditions: How and where the results were measured; others are not mixed in.
        results: Results by cell, in the order of measurement.
    """

    def __init__(self, path: Path, conditions: Mapping[str, str], restart: bool = False) -> None:
        """Open a folder, or create it with the first result.

        Args:
            path: The folder.
            conditions: See above.
            restart: Whether to discard existing results.

        Raises:
            MlclsError: The results were measured under other conditions, or cannot be read.
        """
        self.path = path
        self.conditions = dict(conditions)
        self.results: dict[Cell, CellResult] = {}
        if (path / RESULTS_FILE).exists() and not restart:
            self._read()

    def add(self, result: CellResult) -> None:
        """Add a result and write the files."""
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
        advice = "choose another --output, or pass --restart"
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
    """Return one row for each cell, without figures if it was not measured; steps have short names."""
    rows = [_row(result) for result in results]
    columns = list(dict.fromkeys(name for row in sorted(rows, key=len, reverse=True) for name in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def steps_of(result: CellResult) -> dict[str, StepTimes]:
    """Return times by step, in the order in which an image passes through them."""
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
