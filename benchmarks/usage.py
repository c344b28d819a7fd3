"""What a server's processes use: processor time and memory, in all and for each image."""

from __future__ import annotations

import dataclasses
import urllib.request
from collections.abc import Mapping
from typing import Final

import psutil

from mlcls.errors import ServerError
from mlcls.server.process import TritonServer

# The steps of an ensemble; the name of the model that serves a step has it, and a number from version 2 on.
_STEPS: Final = ("preprocess", "engine", "postprocess")


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
    """Return the usage of a process and all its descendants, by process id; empty if it has ended."""
    usage: dict[int, ProcessUsage] = {}
    try:
        root = psutil.Process(pid)
        processes = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return usage
    for process in processes:
        try:
            times, memory = process.cpu_times(), process.memory_full_info()
            usage[process.pid] = ProcessUsage(find_name(process), times.user + times.system, memory.pss)
        except psutil.Error:  # it has ended
            continue
    return usage


def find_name(process: psutil.Process) -> str:
    """Return the model of a Python stub, from its last argument but one (`NAME_engine_0_0`), or the program's name.

    Raises:
        psutil.Error: It has ended.
    """
    arguments = process.cmdline()
    if len(arguments) > 2 and arguments[0].endswith("triton_python_backend_stub"):
        return str(arguments[-2].rsplit("_", 2)[0])
    return str(process.name())


def total_pss_bytes(usage: Mapping[int, ProcessUsage]) -> int:
    """Return the memory of all processes."""
    return sum(each.pss_bytes for each in usage.values())


@dataclasses.dataclass(frozen=True)
class ServedCost:
    """What a server used between two moments.

    Attributes:
        images: Images that the server answered, by its own count.
        core_ms_per_image: CPU time per image, by process: `preprocess`, `engine`, `postprocess`, `tritonserver`; empty
            if no image was answered.
        pss_mb: Memory of all processes at the end (PSS).
    """

    images: int
    core_ms_per_image: Mapping[str, float]
    pss_mb: float

    @property
    def total_core_ms(self) -> float:
        """CPU time per image of all processes together; 0 if no image was answered."""
        return sum(self.core_ms_per_image.values())


class CostMeter:
    """Measures the cost of a server's answers for one ensemble, from the moment it is created."""

    def __init__(self, server: TritonServer, model: str) -> None:
        """Read the counts at the start.

        Raises:
            ServerError: The metrics cannot be read.
        """
        self._server, self._model = server, model
        self._usage, self._images = read_usage(server.pid), self._count()

    def read(self) -> ServedCost:
        """Return the cost since then.

        Raises:
            ServerError: The metrics cannot be read.
        """
        usage, images = read_usage(self._server.pid), self._count() - self._images
        spent_s: dict[str, float] = {}
        for pid, each in usage.items():
            step = next((step for step in _STEPS if f"_{step}" in each.name), each.name)
            earlier_s = self._usage[pid].cpu_s if pid in self._usage else 0.0
            spent_s[step] = spent_s.get(step, 0.0) + each.cpu_s - earlier_s
        per_image = {name: seconds / images * 1e3 for name, seconds in spent_s.items()} if images else {}
        return ServedCost(images, per_image, total_pss_bytes(usage) / 1e6)

    def _count(self) -> int:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy cannot reach this machine
        url = self._server.metrics_url
        try:
            with opener.open(url, timeout=10) as response:
                return count_images(response.read().decode(), self._model)
        except OSError as error:
            raise ServerError(f"Expected metrics at {url}, got: {error}") from None


def count_images(metrics: str, model: str) -> int:
    """Return how many images a model answered, in all versions, from Triton's metrics in Prometheus text."""
    start = f'nv_inference_count{{model="{model}",'
    return sum(int(float(line.rsplit(" ", 1)[1])) for line in metrics.splitlines() if line.startswith(start))
