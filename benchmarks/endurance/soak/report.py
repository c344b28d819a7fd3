"""The report of a soak run: the figures, the failures, and a picture of the run."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.endurance.soak.load import Outcome

_STEP_S: Final = 5.0


@dataclasses.dataclass(frozen=True)
class FaultRecord:
    """One injected fault.

    Attributes:
        name: Its kind.
        time_s: Monotonic time.
    """

    name: str
    time_s: float


@dataclasses.dataclass(frozen=True)
class SoakRecord:
    """Everything recorded during a run.

    Attributes:
        begin_s: Monotonic time of the first request.
        end_s: Monotonic time of the end of the load.
        rate: Intended requests per second.
        sustainable: Requests per second that a closed loop reached before.
        sent: Number of requests.
        outcomes: Outcomes of the requests.
        errors: Number of failed tries, by error.
        faults: Faults in chronological order.
        memory: Monotonic time, and memory of the server in bytes (PSS).
        exit_status: Exit status of `mlcls serve` after SIGTERM.
    """

    begin_s: float
    end_s: float
    rate: float
    sustainable: float
    sent: int
    outcomes: Sequence[Outcome]
    errors: Mapping[str, int]
    faults: Sequence[FaultRecord]
    memory: Sequence[tuple[float, int]]
    exit_status: int | None


def summarize(record: SoakRecord, about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of summary.json."""
    kinds = Counter(outcome.kind for outcome in record.outcomes)
    lost = kinds["lost"] + record.sent - len(record.outcomes)
    smooth = [each.ended_s - each.sent_s for each in record.outcomes if each.kind == "answered" and each.tries == 1]
    first, last = record.memory[: max(1, len(record.memory) // 10)], record.memory[-max(1, len(record.memory) // 10) :]
    faults = [
        {"fault": fault.name, "at_s": round(fault.time_s - record.begin_s, 1), **recovery}
        for fault, recovery in zip(record.faults, find_recoveries(record), strict=True)
    ]
    return {
        **about,
        "minutes": round((record.end_s - record.begin_s) / 60, 1),
        "sustainable_per_s": round(record.sustainable, 1),
        "rate_per_s": round(record.rate, 1),
        "requests": {
            "sent": record.sent,
            "answered": kinds["answered"],
            "answered_at_once": len(smooth),
            "answered_on_retry": kinds["answered"] - len(smooth),
            "refused": kinds["refused"],
            "wrong": kinds["wrong"],
            "lost": lost,
        },
        "latency_ms": {f"p{p}": round(float(np.percentile(smooth, p)) * 1e3, 1) for p in (50, 95, 99)}
        if smooth
        else {},
        "memory_mb": {
            "first_tenth": round(float(np.mean([value for _, value in first])) / 1e6),
            "last_tenth": round(float(np.mean([value for _, value in last])) / 1e6),
            "highest": round(max(value for _, value in record.memory) / 1e6),
        },
        "faults": faults,
        "errors_of_tries": dict(Counter(record.errors).most_common(20)),
        "exit_status": record.exit_status,
    }


def find_recoveries(record: SoakRecord) -> list[dict[str, Any]]:
    """Return for each fault how many requests were retried, and when the last of them was answered."""
    recoveries = []
    ends = [fault.time_s for fault in record.faults[1:]] + [float("inf")]
    disturbed = [each for each in record.outcomes if each.tries > 1 or each.kind != "answered"]
    for fault, end_s in zip(record.faults, ends, strict=True):
        own = [each for each in disturbed if fault.time_s <= each.ended_s < end_s]
        recoveries.append(
            {
                "requests_retried": len(own),
                "recovered_after_s": round(max((each.ended_s - fault.time_s for each in own), default=0.0), 1),
            }
        )
    return recoveries


def find_failures(summary: Mapping[str, Any]) -> list[str]:
    """Return what is wrong, one text per kind of failure."""
    requests = summary["requests"]
    failures = [f"{requests[kind]} requests were {kind}" for kind in ("lost", "wrong", "refused") if requests[kind]]
    if summary["exit_status"] != 0:
        failures.append(f"mlcls serve exited with {summary['exit_status']} after SIGTERM")
    return failures


def describe(summary: Mapping[str, Any]) -> str:
    """Return the figures as lines and a table."""
    requests, memory = summary["requests"], summary["memory_mb"]
    lines = [
        f"{summary['minutes']} minutes at {summary['rate_per_s']} requests/s ({summary['sustainable_per_s']} measured)",
        ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in requests.items()),
        f"latency {summary['latency_ms']} ms",
        "memory {first_tenth} MB at the start, {last_tenth} MB at the end, {highest} MB at most".format(**memory),
        "",
        "| fault | times | requests retried | last of them answered after |",
        "|---|---|---|---|",
    ]
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for fault in summary["faults"]:
        kinds.setdefault(fault["fault"], []).append(fault)
    for name, faults in kinds.items():
        times = ", ".join(f"{fault['recovered_after_s']:.1f}" for fault in faults)
        retried = ", ".join(str(fault["requests_retried"]) for fault in faults)
        lines.append(f"| {name} | {len(faults)} | {retried} | {times} s |")
    return "\n".join(lines)


def draw(record: SoakRecord, path: Path) -> None:
    """Draw answers, retries and memory over time, with the faults."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    figure, (rates, memory) = pyplot.subplots(2, 1, figsize=(12, 7), sharex=True, layout="constrained")
    edges = np.arange(0, record.end_s - record.begin_s + _STEP_S, _STEP_S)
    for label, chosen in (
        (
            "answered on the first try",
            [each for each in record.outcomes if each.kind == "answered" and each.tries == 1],
        ),
        ("answered on a later try", [each for each in record.outcomes if each.kind == "answered" and each.tries > 1]),
        ("refused, wrong or lost", [each for each in record.outcomes if each.kind != "answered"]),
    ):
        counts, _ = np.histogram([each.ended_s - record.begin_s for each in chosen], edges)
        rates.plot(edges[:-1] / 60, counts / _STEP_S, label=label, linewidth=1)
    rates.set_ylabel("requests/s")
    memory.plot(
        [(time_s - record.begin_s) / 60 for time_s, _ in record.memory],
        [value / 1e6 for _, value in record.memory],
        linewidth=1,
        label="memory of all processes (PSS)",
    )
    memory.set_ylabel("MB")
    memory.set_ylim(bottom=0)
    memory.set_xlabel("minutes")
    for fault in record.faults:
        at = (fault.time_s - record.begin_s) / 60
        for axes in (rates, memory):
            axes.axvline(at, color="gray", linewidth=0.6, linestyle=":")
        memory.annotate(
            fault.name, (at, 0.02), xycoords=("data", "axes fraction"), rotation=90, fontsize=7, ha="right", va="bottom"
        )
    for axes in (rates, memory):
        axes.legend(loc="upper right", fontsize=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
