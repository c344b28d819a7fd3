"""What a server's processes take: processor time and memory, read from `/proc`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import psutil


@dataclasses.dataclass(frozen=True)
class ProcessUsage:
    """Usage of one process since it started.

    Attributes:
        name: What it does: the program's name, or the Triton model that a Python stub serves.
        cpu_s: Processor time in user and kernel mode.
        pss_bytes: Memory, shared pages divided among those that share them.
    """

    name: str
    cpu_s: float
    pss_bytes: int


def read_usage(pid: int) -> dict[int, ProcessUsage]:
    """Return usage of a process and of all its descendants, by process id."""
    return {process.pid: usage for process, usage in _read_tree(psutil.Process(pid))}


def cpu_since(before: dict[int, ProcessUsage], after: dict[int, ProcessUsage]) -> dict[str, float]:
    """Return the processor seconds between two readings, by name; processes of one name are added up."""
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
    """Return a stub's instance, its last argument but one: the model's name and two numbers, `NAME_engine_0_0`."""
    arguments = process.cmdline()
    if len(arguments) > 2 and arguments[0].endswith("triton_python_backend_stub"):
        return str(arguments[-2].rsplit("_", 2)[0])
    return str(process.name())
