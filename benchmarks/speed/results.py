"""The loads of `make bench`, their results, and the files that keep them: JSON, CSV and a report in Markdown."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.speed.perf_analyzer import PROTOCOLS, PerfFigures, Protocol
from benchmarks.usage import ServedCost
from mlcls.base.files import write_text
from mlcls.errors import MlclsError
from mlcls.repository.settings import TARGETS, Target

RESULTS_FILE: Final = "results.json"
TABLE_FILE: Final = "results.csv"
REPORT_FILE: Final = "report.md"
_SCHEMA_VERSION: Final = 2

STEPS: Final = ("preprocess", "engine", "postprocess")

# What a reader must know about the figures.
_NOTES: Final = """\
- A load is a number of requests in flight: as soon as one is answered, the next is sent. The load generator runs on \
the server's machine and shares its cores.
- Each figure is the mean of three time windows in a row whose throughput and mean latency differ by no more than the \
percentage above; earlier windows do not count. A star marks loads without three such windows: something else used the \
machine, or too few requests end in a window.
- The server's CPU time is that of all requests of a load, including those before the windows.
- Figures are comparable within one run, but not with those of another machine or another day.
"""
_NOT_RUN: Final = {
    "int8": "no model here has an INT8 engine; mlcls build-engine MODEL --engine int8",
    "cpu": "Triton's onnxruntime backend, in the container",
    "gpu": "Triton's tensorrt backend, in the container, on a GPU",
}
# Columns of the report by their key in a result.
_COLUMNS: Final = {
    "images_per_s": "images/s",
    "p50_ms": "p50 ms",
    "p95_ms": "p95",
    "p99_ms": "p99",
    **{f"{step}_{part}_ms": f"{step}: {part} ms" for step in STEPS for part in ("queue", "compute")},
    "engine_images_per_execution": "images a batch",
    "core_ms_per_image": "core-ms an image",
    "pss_mb": "PSS MB",
}

# A result as in the files: the load's fields, `status` (`measured`; `left out`: an answer would take too long;
# `failed`: to be retried), `note`, and the figures if it was measured.
Result = dict[str, Any]


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


def make_cells(
    model: str, target: Target, protocols: Sequence[Protocol], batches: Sequence[int], concurrencies: Sequence[int]
) -> Iterator[Cell]:
    """Yield all loads of a served model, light ones first, and both protocols of a load one after the other."""
    for batch_size in sorted(set(batches)):
        for concurrency in sorted(set(concurrencies)):
            for protocol in (each for each in PROTOCOLS if each in protocols):
                yield Cell(model, target, protocol, batch_size, concurrency)


def make_result(
    cell: Cell, status: str, note: str = "", figures: PerfFigures | None = None, cost: ServedCost | None = None
) -> Result:
    """Return the result of a load; steps and processes have short names."""
    result: Result = {**dataclasses.asdict(cell), "status": status, "note": note}
    if figures is not None:
        result |= {name: value for name, value in dataclasses.asdict(figures).items() if name != "steps"}
        for name, times in figures.steps.items():
            step = name.removeprefix(f"{cell.model}_")
            result |= {f"{step}_{part}": value for part, value in dataclasses.asdict(times).items()}
    if cost is not None:
        result |= {"pss_mb": cost.pss_mb, "images": cost.images, "core_ms_per_image": cost.total_core_ms}
        result |= {f"{name}_core_ms_per_image": value for name, value in cost.core_ms_per_image.items()}
    return result


class ResultFolder:
    """Results on disk, complete after each load, so that an interrupted run can continue.

    Attributes:
        path: The folder.
        conditions: How and where the results were measured; others are not mixed in.
        results: Results by load, in the order of measurement.
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
        self.results: dict[Cell, Result] = {}
        if (path / RESULTS_FILE).exists() and not restart:
            self._read()

    def add(self, cell: Cell, result: Result) -> None:
        """Add a result and write the files."""
        self.results[cell] = result
        results = list(self.results.values())
        document = {"schema_version": _SCHEMA_VERSION, "conditions": self.conditions, "results": results}
        write_text(self.path / RESULTS_FILE, json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        columns = list(dict.fromkeys(name for each in sorted(results, key=len, reverse=True) for name in each))
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(results)
        write_text(self.path / TABLE_FILE, buffer.getvalue())

    def is_done(self, cell: Cell) -> bool:
        """Return whether a load need not be measured any more."""
        return cell in self.results and self.results[cell]["status"] != "failed"

    def _read(self) -> None:
        path = self.path / RESULTS_FILE
        advice = "choose another --output, or pass --restart"
        names = [field.name for field in dataclasses.fields(Cell)]
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            if document["schema_version"] != _SCHEMA_VERSION:
                raise ValueError(f"schema_version {document['schema_version']}")
            found = dict(document["conditions"])
            self.results = {Cell(*(each[name] for name in names)): each for each in document["results"]}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise MlclsError(f"{path}: expected results of this benchmark, got: {error!r}; {advice}.") from None
        differences = [
            f"{name} {found.get(name)!r}, now {self.conditions.get(name)!r}"
            for name in {**found, **self.conditions}
            if found.get(name) != self.conditions.get(name)
        ]
        if differences:
            raise MlclsError(
                f"{path}: expected results of the same conditions, got {', '.join(differences)}; {advice}."
            )


def format_report(folder: ResultFolder, command: str) -> str:
    """Return the report in Markdown.

    Args:
        folder: The results.
        command: The command line that produced them.
    """
    results = list(folder.results.values())
    facts = "\n".join(f"- {name}: {value}" for name, value in folder.conditions.items())
    parts = ["# Speed of the served models", f"`{command}`", facts, _NOTES]
    measured = [each for each in results if each["status"] == "measured"]
    parts.append(
        "The best load of each model and engine, and the latency of a single image:\n\n" + _format_best(measured)
    )
    for model in dict.fromkeys(each["model"] for each in results):
        head = ["engine", "protocol", "in flight", "batch", *_COLUMNS.values()]
        rows = [_format_row(each) for each in results if each["model"] == model]
        parts.append(f"## {model}\n\n{format_table(head, rows)}")
    missing = [target for target in TARGETS if target not in {each["target"] for each in results}]
    if missing:
        parts.append("Not run:\n\n" + "\n".join(f"- {each}: {_NOT_RUN.get(each, 'not asked for')}" for each in missing))
    return "\n\n".join(parts) + "\n"


def _format_best(measured: Sequence[Result]) -> str:
    rows = []
    for model, target in dict.fromkeys((each["model"], each["target"]) for each in measured):
        own = [each for each in measured if (each["model"], each["target"]) == (model, target)]
        best = max(own, key=lambda each: float(each["images_per_s"]))
        lone = [each["p50_ms"] for each in own if each["concurrency"] == each["batch_size"] == 1]
        load = f"{best['protocol']}, {best['concurrency']} x {best['batch_size']}"
        figures = [_format(best, key) for key in ("images_per_s", "p50_ms", "p99_ms", "core_ms_per_image", "pss_mb")]
        rows.append([model, target, load, *figures, f"{min(lone):.1f}" if lone else "-"])
    head = ["model", "engine", "in flight x images", "images/s", "p50 ms", "p99", "core-ms an image", "PSS MB"]
    return format_table([*head, "a single image, p50 ms"], rows)


def _format_row(result: Result) -> list[str]:
    row = [str(result[name]) for name in ("target", "protocol", "concurrency", "batch_size")]
    if result["status"] != "measured":
        return [*row, f"{result['status']}: {result['note']}"]
    return [*row, *(_format(result, key) for key in _COLUMNS)]


def _format(result: Result, key: str) -> str:
    """Return a figure; a star marks the throughput of a load without stable windows."""
    star = " *" if key == "images_per_s" and not result["stable"] else ""
    return f"{result[key]:.1f}{star}" if key in result else "-"


def format_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; missing cells at the end of a row stay empty."""
    padded = [[*row, *[""] * (len(head) - len(row))] for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in padded)
