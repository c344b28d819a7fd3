"""What a server's processes use: processor time and memory, in all and for each image."""

from __future__ import annotations

import dataclasses
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Final

import psutil

from mlcls.errors import ServerError
from mlcls.server.process import TritonServer

# The steps of an ensemble; the name of the model that serves a step ends with it.
_STEPS: Final = ("preprocess", "engine", "postprocess")
_IMAGES: Final = "nv_inference_count"


@dataclasses.dataclass(frozen=True)
class ProcessUsage:
    """Usage of one process since it started.

    Attributes:
        name: The program's name, or the Triton model that a Python stub serves.
        cpu_s: CPU time in user and kernel mode.
        pss_bytes: Memory (PSS: shared pages are divided among the processes that share them).
    """

    name: str
    cpu_s: float
    pss_bytes: int


def read_usage(pid: int) -> dict[int, ProcessUsage]:
    """Return the usage of a process and all its descendants, by process id."""
    return {process.pid: usage for process, usage in _read_tree(psutil.Process(pid))}


def cpu_since(before: dict[int, ProcessUsage], after: dict[int, ProcessUsage]) -> dict[str, float]:
    """Return the CPU seconds between two readings, by name; processes with the same name are added up."""
    spent: dict[str, float] = {}
    for pid, usage in after.items():
        earlier = before[pid].cpu_s if pid in before else 0.0
        spent[usage.name] = spent.get(usage.name, 0.0) + usage.cpu_s - earlier
    return spent


def total_pss_bytes(usage: dict[int, ProcessUsage]) -> int:
    """Return the memory of all processes."""
    return sum(each.pss_bytes for each in usage.values())


def _read_tree(root: psutil.Process) -> Iterator[tuple[psutil.Process, ProcessUsage]]:
    for process in [root, *root.children(recursive=True)]:
        try:
            times = process.cpu_times()
            yield (
                process,
                ProcessUsage(_name(process), times.user + times.system, process.memory_full_info().pss),
            )
        except psutil.NoSuchProcess:
            continue


def _name(process: psutil.Process) -> str:
    """Return the model of a Python stub, from its last argument but one (`NAME_engine_0_0`), or the program's name."""
    arguments = process.cmdline()
    if len(arguments) > 2 and arguments[0].endswith("triton_python_backend_stub"):
        return str(arguments[-2].rsplit("_", 2)[0])
    return str(process.name())


@dataclasses.dataclass(frozen=True)
class ServedCost:
    """What a server used between two moments.

    Attributes:
        images: Images that the server answered, by its own count.
        core_ms_per_image: CPU time per image, by process: `preprocess`, `engine`, `postprocess`, `tritonserver`; empty
            if no image was answered.
        pss_mb: Memory of all processes at the end (PSS).
        metric_series: Number of series in the server's metrics.
    """

    images: int
    core_ms_per_image: Mapping[str, float]
    pss_mb: float
    metric_series: int

    @property
    def total_core_ms(self) -> float:
        """CPU time per image of all processes together; 0 if no image was answered."""
        return sum(self.core_ms_per_image.values())


class CostMeter:
    """Measures a server's cost from the moment it is created."""

    def __init__(self, server: TritonServer, *models: str) -> None:
        """Read the counts at the start.

        Args:
            server: A running server.
            models: The ensembles whose images count.

        Raises:
            ServerError: The metrics cannot be read.
        """
        self._server = server
        self._models = models
        self._usage = read_usage(server.pid)
        self._images = count_images(_read_metrics(server.metrics_url), models)

    def read(self) -> ServedCost:
        """Return the cost since then.

        Raises:
            ServerError: The metrics cannot be read.
        """
        metrics, usage = _read_metrics(self._server.metrics_url), read_usage(self._server.pid)
        spent_s = _by_step(cpu_since(self._usage, usage))
        answered = count_images(metrics, self._models) - self._images
        return ServedCost(
            answered,
            {name: seconds / answered * 1e3 for name, seconds in spent_s.items()} if answered else {},
            total_pss_bytes(usage) / 1e6,
            sum(bool(line) and not line.startswith("#") for line in metrics.splitlines()),
        )


def _read_metrics(metrics_url: str) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy cannot reach this machine
    try:
        with opener.open(metrics_url, timeout=10) as response:
            return bytes(response.read()).decode()
    except OSError as error:
        raise ServerError(f"Expected metrics at {metrics_url}, got: {error}") from None


def count_images(metrics: str, models: tuple[str, ...]) -> int:
    """Return how many images some models answered, in all versions, from Triton's metrics in Prometheus text."""
    starts = tuple(f'{_IMAGES}{{model="{model}",' for model in models)
    return sum(int(float(line.rsplit(" ", 1)[1])) for line in metrics.splitlines() if line.startswith(starts))


def _by_step(spent_s: Mapping[str, float]) -> dict[str, float]:
    """Add up the processes of each step over all models; other processes keep their names."""
    added: dict[str, float] = {}
    for name, seconds in spent_s.items():
        step = next((step for step in _STEPS if name.endswith(f"_{step}")), name)
        added[step] = added.get(step, 0.0) + seconds
    return added
