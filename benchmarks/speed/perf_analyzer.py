"""NVIDIA's perf_analyzer: found where `make` installed it, run with one load, its output parsed.

Latencies come from its CSV file. The times of an ensemble's steps come from what it prints: the CSV file of version
2.51 adds the steps up, and its `Server Queue` is not the sum of their queues (1 microsecond instead of thousands).
"""

from __future__ import annotations

import base64
import csv
import dataclasses
import io
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

from mlcls.base.files import write_text
from mlcls.base.processes import end_with_parent
from mlcls.errors import MlclsError

_REQUESTS: Final = re.compile(r"^ *Request count: (\d+)$", re.MULTILINE)
_COMPOSING: Final = "Composing models:"
# `  animals_engine, version: 1`; the indented lines below it have the figures of that step.
_STEP: Final = re.compile(r"^ {2}(?P<name>\S.*?), version: *\S*$")
_COUNT: Final = re.compile(r"^ {4,}(?P<what>Inference|Execution|Successful request) count: (?P<count>\d+)$")
_TIMES: Final = re.compile(r"^ {4,}Avg request latency: \d+ usec \((?P<parts>.*)\)$")
_PART: Final = re.compile(r"([a-z][a-z /]*) (\d+) usec")

Protocol = Literal["grpc", "http"]
PROTOCOLS: Final[tuple[Protocol, ...]] = ("grpc", "http")

# The libraries that the executable links to, and where to look for them; if one is not there, the system may have it.
_LIBRARIES: Final = (("libcudart.so.12", Path(".venv-bench")), ("libb64.so.0d", Path(".tools") / "libb64"))
_EXECUTABLE: Final = Path(".venv-bench") / "bin" / "perf_analyzer"

# Its exit status and text if the windows of a load do not agree.
_UNSTABLE_STATUS: Final = 2
_UNSTABLE: Final = "Failed to obtain stable measurement"
# Accepts any three windows, in percent.
_ANY_DEVIATION: Final = 1_000_000
_COMPARED_WINDOWS: Final = 3


class PerfAnalyzerError(MlclsError):
    """perf_analyzer is not installed, fails, or prints something unexpected."""


@dataclasses.dataclass(frozen=True)
class StepTimes:
    """Mean times of a request in one step of an ensemble, according to the server.

    Attributes:
        images_per_execution: Mean number of images in a dynamic batch.
        queue_ms: Wait for an instance.
        input_ms: Copies into it.
        infer_ms: Time in the backend.
        output_ms: Copies out of it.
    """

    images_per_execution: float
    queue_ms: float
    input_ms: float
    infer_ms: float
    output_ms: float

    @property
    def compute_ms(self) -> float:
        """Everything but the queue."""
        return self.input_ms + self.infer_ms + self.output_ms


@dataclasses.dataclass(frozen=True)
class PerfFigures:
    """What perf_analyzer measured with one load.

    Attributes:
        images_per_s: Throughput.
        requests: Requests answered within the windows.
        mean_ms: Latency of a request with all its images.
        p50_ms: Percentiles of it.
        p90_ms: See `p50_ms`.
        p95_ms: See `p50_ms`.
        p99_ms: See `p50_ms`.
        steps: Times of the steps, by the name of the step's model, in the order of perf_analyzer; empty for a model
            that is not an ensemble.
        stable: Whether three windows in a row agreed; if not, the figures are the mean of three that did not.
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
    """Return the figures of a run at one concurrency.

    Args:
        report: Content of the CSV file from `-f` and `--verbose-csv`.
        printed: Standard output.

    Raises:
        PerfAnalyzerError: Something is missing.
    """
    rows = list(csv.DictReader(io.StringIO(report)))
    if len(rows) != 1:
        raise PerfAnalyzerError(
            f"Expected one row in perf_analyzer's CSV file, got {len(rows)}; measure one concurrency at a time."
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
    """Return the times by step from the part below `Composing models:`."""
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


@dataclasses.dataclass(frozen=True)
class Load:
    """The requests to send.

    Attributes:
        model: Name of the served model.
        protocol: gRPC or HTTP.
        url: `host:port` of that API.
        data: File written by `write_input_data`.
        concurrency: Requests in flight.
        batch_size: Images per request.
    """

    model: str
    protocol: Protocol
    url: str
    data: Path
    concurrency: int
    batch_size: int = 1


@dataclasses.dataclass(frozen=True)
class Windows:
    """When a measurement ends.

    Attributes:
        window_s: Length of a window.
        deviation_percent: How much throughput and mean latency of three windows in a row may differ.
        most: Most windows to try.
    """

    window_s: float
    deviation_percent: float = 10.0
    most: int = 6


@dataclasses.dataclass(frozen=True)
class PerfAnalyzer:
    """An installed perf_analyzer.

    Attributes:
        executable: The program.
        library_folders: Where its libraries are.
    """

    executable: Path
    library_folders: tuple[Path, ...]

    @classmethod
    def find(cls, root: Path = Path()) -> PerfAnalyzer:
        """Return the perf_analyzer of a checkout.

        Args:
            root: The checkout's root.

        Raises:
            PerfAnalyzerError: It is not installed, or a library is missing.
        """
        executable = (root / _EXECUTABLE).absolute()
        if not executable.exists():
            raise PerfAnalyzerError(
                f"Expected perf_analyzer in {executable}, got nothing there; run: make .venv-bench/.installed"
            )
        folders = [path.parent.absolute() for name, folder in _LIBRARIES for path in (root / folder).rglob(name)]
        found = cls(executable, tuple(folders))
        if (result := found._run(["--version"], 30.0)).returncode != 0:
            raise PerfAnalyzerError(
                f"perf_analyzer does not run: {(result.stderr or result.stdout).strip()[-400:]}; for libb64 run: make "
                f".tools/libb64/.installed, or: apt-get install libb64-0d"
            )
        return found

    def read_version(self) -> str:
        """Return its version; `unknown` if it prints none."""
        words = self._run(["--version"], 30.0).stdout.split()
        return next((word.rstrip(",") for word in words if word[:1].isdigit()), "unknown")

    def measure(self, load: Load, windows: Windows) -> PerfFigures:
        """Measure until three windows in a row agree; if none do, use three that do not, and say so in the figures.

        Raises:
            PerfAnalyzerError: It fails, for example because a request fails, or prints something unexpected.
        """
        options = ["--measurement-interval", str(round(windows.window_s * 1e3)), "--stability-percentage"]
        # Requests that take longer than a window lengthen it: the first window waits for all requests in flight.
        limit_s = 120 + 4 * windows.window_s * windows.most
        stable = [*options, str(windows.deviation_percent), "--max-trials", str(windows.most)]
        figures = self._measure(load, stable, limit_s)
        if figures is None:
            figures = self._measure(
                load, [*options, str(_ANY_DEVIATION), "--max-trials", str(_COMPARED_WINDOWS)], limit_s
            )
            if figures is None:
                raise PerfAnalyzerError(
                    f"perf_analyzer got no answers from {load.model} in three windows of {windows.window_s:g} s; use "
                    f"longer ones."
                )
            figures = dataclasses.replace(figures, stable=False)
        return figures

    def measure_requests(self, load: Load, count: int, limit_s: float = 3600.0) -> PerfFigures:
        """Measure a number of requests.

        Raises:
            PerfAnalyzerError: See `measure`.
        """
        figures = self._measure(load, ["--request-count", str(count)], limit_s)
        if figures is None:
            raise PerfAnalyzerError(f"perf_analyzer got no stable measurement of {count} requests to {load.model}.")
        return figures

    def _measure(self, load: Load, options: Sequence[str], limit_s: float) -> PerfFigures | None:
        """Run once; return None if the windows were unstable."""
        with tempfile.TemporaryDirectory(prefix="mlcls-perf-") as work:
            report = Path(work) / "report.csv"
            command = [
                "-m", load.model, "-i", load.protocol, "-u", load.url, "--async", "--input-data", str(load.data),
                "-b", str(load.batch_size), "--concurrency-range", str(load.concurrency), "-f", str(report),
                "--verbose-csv", "-v", *options,
            ]  # fmt: skip
            done = self._run(command, limit_s)
            if done.returncode == _UNSTABLE_STATUS and _UNSTABLE in done.stdout + done.stderr:
                return None
            if done.returncode != 0 or not report.exists():
                text = " ".join((done.stderr + done.stdout).split())
                raise PerfAnalyzerError(f"perf_analyzer failed with {load.model}: {text[-600:] or done.returncode}")
            return parse_output(report.read_text(encoding="utf-8"), done.stdout)

    def _run(self, options: Sequence[str], limit_s: float) -> subprocess.CompletedProcess[str]:
        libraries = [*map(str, self.library_folders), os.environ.get("LD_LIBRARY_PATH", "")]
        try:
            return subprocess.run(
                [str(self.executable), *options],
                env={**os.environ, "LD_LIBRARY_PATH": ":".join(filter(None, libraries))},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=limit_s,
                preexec_fn=end_with_parent,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise PerfAnalyzerError(f"perf_analyzer did not finish: {error}") from None


def write_input_data(path: Path, images: Sequence[bytes], tensor: str = "image") -> Path:
    """Write encoded images as input data for perf_analyzer, which sends them in turn and keeps them all in memory.

    It uses the `b64` bytes as they are, so they must start with the length of the element of the BYTES tensor.

    Args:
        path: The JSON file.
        images: Encoded images, at least one.
        tensor: Name of the input.
    """
    elements = []
    for image in images:
        framed = len(image).to_bytes(4, "little") + image
        elements.append({tensor: {"content": {"b64": base64.b64encode(framed).decode()}, "shape": [1]}})
    write_text(path, json.dumps({"data": elements}))
    return path
