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
from typing import Any, Final, Literal

from mlcls.base.files import write_text
from mlcls.base.processes import end_with_parent
from mlcls.errors import MlclsError

_REQUESTS: Final = re.compile(r"^ *Request count: (\d+)$", re.MULTILINE)
# The figures of each step below `Composing models:`.
_STEP: Final = re.compile(
    r"^ {2}(?P<name>\S.*?), version:.*\n"
    r" +Inference count: (?P<images>\d+)\n +Execution count: (?P<executions>\d+)\n.*\n"
    r" +Avg request latency: (?P<all>\d+) usec \(overhead \d+ usec \+ queue (?P<queue>\d+) usec \+ compute input",
    re.MULTILINE,
)

Protocol = Literal["grpc", "http"]
PROTOCOLS: Final[tuple[Protocol, ...]] = ("grpc", "http")

# The root of the checkout.
ROOT: Final = Path(__file__).resolve().parents[2]
# The libraries that the executable links to, and where to look for them; if one is not there, the system may have it.
_LIBRARIES: Final = (("libcudart.so.12", Path(".venv-bench")), ("libb64.so.0d", Path(".tools") / "libb64"))
_EXECUTABLE: Final = Path(".venv-bench") / "bin" / "perf_analyzer"

# Its exit status and text if the windows of a load do not agree.
_UNSTABLE_STATUS: Final = 2
_UNSTABLE: Final = "Failed to obtain stable measurement"
# Accepts any three windows, in percent.
ANY_DEVIATION: Final = 1_000_000.0
_COMPARED_WINDOWS: Final = 3
# For a slow model, windows are longer: at least this many requests end in each.
_LEAST_REQUESTS: Final = 6
# A window must be this many times longer than the slowest answer.
_WINDOW_TO_LATENCY: Final = 1.3


class PerfAnalyzerError(MlclsError):
    """perf_analyzer is not installed, fails, or prints something unexpected."""


@dataclasses.dataclass(frozen=True)
class StepTimes:
    """Mean times of a request in one step of an ensemble, according to the server.

    Attributes:
        images_per_execution: Mean number of images in a dynamic batch.
        queue_ms: Wait for an instance.
        compute_ms: Everything else: copies and the backend.
    """

    images_per_execution: float
    queue_ms: float
    compute_ms: float


@dataclasses.dataclass(frozen=True)
class PerfFigures:
    """What perf_analyzer measured with one load.

    Attributes:
        images_per_s: Throughput.
        requests: Requests answered within the windows.
        mean_ms: Latency of a request with all its images.
        p50_ms: Percentiles of it.
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
    below = printed.partition("Composing models:")[2]
    steps = {
        step["name"]: StepTimes(
            int(step["images"]) / max(int(step["executions"]), 1),
            int(step["queue"]) / 1e3,
            (int(step["all"]) - int(step["queue"])) / 1e3,
        )
        for step in _STEP.finditer(below)
    }
    if len(steps) != below.count(", version:"):
        raise PerfAnalyzerError(
            f"Expected perf_analyzer to print the counts and times of each step, got them of {', '.join(steps)} in: "
            f"{below[:800]}; this reads version 2.51.0."
        )
    mean_ms, p50_ms, p95_ms, p99_ms = (read(f"{which} latency") / 1e3 for which in ("Avg", "p50", "p95", "p99"))
    return PerfFigures(read("Inferences/Second"), int(requests[1]), mean_ms, p50_ms, p95_ms, p99_ms, steps)


@dataclasses.dataclass(frozen=True)
class Load:
    """The requests to send.

    Attributes:
        model: Name of the served model.
        url: `host:port` of Triton's API, or `http://host:port` of another server.
        data: File written by `write_input_data`, or by `write_payloads` for another server.
        concurrency: Requests in flight.
        batch_size: Images per request.
        protocol: Of Triton's API.
        path: For another server, the path that takes JSON by POST, without the first slash.
    """

    model: str
    url: str
    data: Path
    concurrency: int
    batch_size: int = 1
    protocol: Protocol = "grpc"
    path: str = ""


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


def choose_windows(windows: Windows, load: Load, images_per_s: float) -> Windows:
    """Return windows that are long enough for several requests, at a throughput."""
    least = max(_LEAST_REQUESTS, _WINDOW_TO_LATENCY * load.concurrency)
    return dataclasses.replace(windows, window_s=max(windows.window_s, least * load.batch_size / images_per_s))


@dataclasses.dataclass(frozen=True)
class PerfAnalyzer:
    """An installed perf_analyzer.

    Attributes:
        executable: The program.
        library_folders: Where its libraries are.
    """

    executable: Path
    library_folders: tuple[Path, ...] = ()

    @classmethod
    def find(cls, root: Path = ROOT) -> PerfAnalyzer:
        """Return the perf_analyzer of a checkout.

        Raises:
            PerfAnalyzerError: It is not installed, or a library is missing.
        """
        executable = root / _EXECUTABLE
        if not executable.exists():
            raise PerfAnalyzerError(
                f"Expected perf_analyzer in {executable}, got nothing there; run: make .venv-bench/.installed"
            )
        folders = [path.parent for name, folder in _LIBRARIES for path in (root / folder).rglob(name)]
        found = cls(executable, tuple(folders))
        if (result := found._run(["--version"], 30.0)).returncode != 0:
            raise PerfAnalyzerError(
                f"perf_analyzer does not run: {(result.stderr or result.stdout).strip()[-400:]}; for libb64 run: make "
                f".tools/libb64/.installed, or: apt-get install libb64-0d"
            )
        return found

    def measure(self, load: Load, windows: Windows) -> PerfFigures:
        """Measure until three windows in a row agree; if none do, use three that do not, and say so in the figures.

        Raises:
            PerfAnalyzerError: It fails, for example because a request fails, or prints something unexpected.
        """
        figures = self._measure(load, windows)
        if figures is None:
            any_three = dataclasses.replace(windows, deviation_percent=ANY_DEVIATION, most=_COMPARED_WINDOWS)
            figures = self._measure(load, any_three)
            if figures is None:
                raise PerfAnalyzerError(
                    f"perf_analyzer got no answers from {load.model} in three windows of {windows.window_s:g} s; use "
                    f"longer ones."
                )
            figures = dataclasses.replace(figures, stable=False)
        return figures

    def _measure(self, load: Load, windows: Windows) -> PerfFigures | None:
        """Run once; return None if the windows were unstable."""
        service = ["--service-kind", "openai", "--endpoint", load.path] if load.path else ["-i", load.protocol]
        with tempfile.TemporaryDirectory(prefix="mlcls-perf-") as work:
            report = Path(work) / "report.csv"
            command = [
                "-m", load.model, *service, "-u", load.url, "--async", "--input-data", str(load.data),
                *(() if load.path else ("-b", str(load.batch_size))),
                "--concurrency-range", str(load.concurrency), "-f", str(report), "--verbose-csv", "-v",
                "--measurement-interval", str(round(windows.window_s * 1e3)),
                "--stability-percentage", str(windows.deviation_percent), "--max-trials", str(windows.most),
            ]  # fmt: skip
            # Requests that take longer than a window lengthen it: the first window waits for all requests in flight.
            done = self._run(command, 120 + 4 * windows.window_s * windows.most)
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
    """Write encoded images as input data for Triton, which are sent in turn and all kept in memory.

    perf_analyzer uses the `b64` bytes as they are, so they must start with the length of the element of the BYTES
    tensor.

    Args:
        path: The JSON file.
        images: Encoded images, at least one.
        tensor: Name of the input.
    """
    elements: list[Any] = []
    for image in images:
        framed = len(image).to_bytes(4, "little") + image
        elements.append({tensor: {"content": {"b64": base64.b64encode(framed).decode()}, "shape": [1]}})
    write_text(path, json.dumps({"data": elements}))
    return path


def write_payloads(path: Path, payloads: Sequence[Any]) -> Path:
    """Write JSON bodies as input data for another server than Triton; perf_analyzer posts them in turn, as they are."""
    write_text(path, json.dumps({"data": [{"payload": [payload]} for payload in payloads]}))
    return path
