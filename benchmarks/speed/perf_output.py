"""What perf_analyzer prints and writes, as figures.

Latencies come from its CSV file. The times of an ensemble's steps come from what it prints: the CSV file of version
2.51 adds the steps up, and its `Server Queue` is then not their queues' (1 microsecond where each step told thousands).
"""

from __future__ import annotations

import csv
import dataclasses
import io
import re
from collections.abc import Mapping
from typing import Final

from mlcls.errors import MlclsError

_REQUESTS: Final = re.compile(r"^ *Request count: (\d+)$", re.MULTILINE)
_COMPOSING: Final = "Composing models:"
# `  animals_engine, version: 1`; in each line below it, deeper, a figure of that step.
_STEP: Final = re.compile(r"^ {2}(?P<name>\S.*?), version: *\S*$")
_COUNT: Final = re.compile(r"^ {4,}(?P<what>Inference|Execution|Successful request) count: (?P<count>\d+)$")
_TIMES: Final = re.compile(r"^ {4,}Avg request latency: \d+ usec \((?P<parts>.*)\)$")
_PART: Final = re.compile(r"([a-z][a-z /]*) (\d+) usec")


class PerfAnalyzerError(MlclsError):
    """perf_analyzer is not installed, fails, or prints what is not understood."""


@dataclasses.dataclass(frozen=True)
class StepTimes:
    """Mean times of a request in one step of an ensemble, as the server tells them.

    Attributes:
        images_per_execution: Images that the batcher put together, on average.
        queue_ms: Waiting for an instance.
        input_ms: Copies into it.
        infer_ms: In the backend.
        output_ms: Copies out of it.
    """

    images_per_execution: float
    queue_ms: float
    input_ms: float
    infer_ms: float
    output_ms: float

    @property
    def compute_ms(self) -> float:
        """All but the queue."""
        return self.input_ms + self.infer_ms + self.output_ms


@dataclasses.dataclass(frozen=True)
class PerfFigures:
    """What perf_analyzer measured with one load.

    Attributes:
        images_per_s: Throughput.
        requests: Requests that were answered within the windows.
        mean_ms: Latency of a request, all its images together.
        p50_ms: Percentiles of it.
        p90_ms: See `p50_ms`.
        p95_ms: See `p50_ms`.
        p99_ms: See `p50_ms`.
        steps: Times of the steps, by the name of the step's model, in the order of perf_analyzer; empty for a model
            that is no ensemble.
        stable: Whether three windows in a row were alike; else the figures are the mean of three that were not.
    """

    images_per_s: float
    requests: int
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    steps: Mapping[str, StepTimes]
    stable: bool = True


def parse_output(report: str, printed: str) -> PerfFigures:
    """Return figures of a run at one concurrency.

    Args:
        report: Content of the CSV file that `-f` and `--verbose-csv` make.
        printed: Standard output.

    Raises:
        PerfAnalyzerError: Something is missing there.
    """
    rows = list(csv.DictReader(io.StringIO(report)))
    if len(rows) != 1:
        raise PerfAnalyzerError(
            f"Expected one row in perf_analyzer's CSV file, got {len(rows)}; ask it for one concurrency at a time."
        )

    def read(column: str) -> float:
        try:
            return float(rows[0][column])
        except (KeyError, TypeError, ValueError):
            raise PerfAnalyzerError(
                f"Expected a number in the column {column!r} of perf_analyzer's CSV file, got "
                f"{rows[0].get(column)!r} in a file with {', '.join(rows[0])}; this reads version 2.51.0."
            ) from None

    requests = _REQUESTS.search(printed)
    if requests is None:
        raise PerfAnalyzerError(f"Expected perf_analyzer to print a request count, got: {printed[-400:]}")
    return PerfFigures(
        images_per_s=read("Inferences/Second"),
        requests=int(requests[1]),
        mean_ms=read("Avg latency") / 1e3,
        p50_ms=read("p50 latency") / 1e3,
        p90_ms=read("p90 latency") / 1e3,
        p95_ms=read("p95 latency") / 1e3,
        p99_ms=read("p99 latency") / 1e3,
        steps=_parse_steps(printed),
    )


def _parse_steps(printed: str) -> dict[str, StepTimes]:
    """Return times by step from the part below `Composing models:`."""
    _, _, below = printed.partition(_COMPOSING)
    counts: dict[str, dict[str, int]] = {}
    times: dict[str, dict[str, float]] = {}
    name = ""
    for line in below.splitlines():
        if (step := _STEP.match(line)) is not None:
            name = step["name"]
            counts[name], times[name] = {}, {}
        elif name and (count := _COUNT.match(line)) is not None:
            counts[name][count["what"]] = int(count["count"])
        elif name and (parts := _TIMES.match(line)) is not None:
            times[name] = {part.strip(): int(usec) / 1e3 for part, usec in _PART.findall(parts["parts"])}
    return {name: _make_step(name, counts[name], times[name]) for name in counts}


def _make_step(name: str, counts: Mapping[str, int], times: Mapping[str, float]) -> StepTimes:
    try:
        return StepTimes(
            counts["Inference"] / max(counts["Execution"], 1),
            times["queue"],
            times["compute input"],
            times["compute infer"],
            times["compute output"],
        )
    except KeyError as error:
        raise PerfAnalyzerError(
            f"Expected perf_analyzer to print {error} of {name}, got {dict(counts)} and {dict(times)}; this reads "
            f"version 2.51.0."
        ) from None
