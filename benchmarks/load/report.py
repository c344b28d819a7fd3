"""The report of a load test: a verdict, a summary, a table and curves."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from benchmarks.load.locustfiles.outcomes import FAILURES, FAULTS, Kind, Tally

PROTOCOLS: Final = ("grpc", "http")
_PERCENTILES: Final = (50, 95, 99)

_LABELS: Final = {Kind.RIGHT: "answered right", Kind.REFUSED: "refused as expected", Kind.UNAVAILABLE: "queue full"}

_COLORS: Final = ("tab:red", "tab:purple", "tab:brown", "black", "tab:pink", "tab:orange")


@dataclasses.dataclass(frozen=True)
class UsageSample:
    """What the server used at one moment.

    Attributes:
        time_s: Unix time.
        memory_bytes: Memory of all its processes (PSS).
        cores: CPU time since the previous sample, in seconds per second.
    """

    time_s: float
    memory_bytes: int
    cores: float


def is_fit(tally: Tally) -> bool:
    """Return whether every answer came and was right; a full server may refuse requests."""
    faults = sum(tally.count_images(kind) for kind in FAULTS)
    return faults == 0 and tally.count_unfinished() == 0 and tally.count_images(Kind.RIGHT) > 0


def summarize(
    tally: Tally, users: Sequence[tuple[float, int]], usage: Sequence[UsageSample], server_answers: int | None
) -> dict[str, Any]:
    """Return all figures as a JSON document.

    Args:
        tally: The counts.
        users: Unix time and number of users.
        usage: Samples of the server; empty if it was not started here.
        server_answers: Requests answered by the server's own count, if known.
    """
    timeline = make_timeline(tally, users, usage)
    duration_s = len(tally.bins()) * tally.bin_s
    right = tally.count_images(Kind.RIGHT)
    return {
        "fit": is_fit(tally),
        "duration_s": duration_s,
        "right_images_per_s": right / duration_s if duration_s else 0.0,
        "all": _figures(tally, None),
        "by_protocol": {name: _figures(tally, name) for name in PROTOCOLS if tally.count_sent("images", name)},
        "server_answers": server_answers,
        "server": _summarize_usage(usage),
        "failures_in_words": tally.details,
        "timeline": timeline,
    }


def make_timeline(
    tally: Tally, users: Sequence[tuple[float, int]], usage: Sequence[UsageSample]
) -> list[dict[str, Any]]:
    """Return a row for each bin: users, rates, latency, and what the server used; None where a value is missing.

    Users and usage are the last known ones, because samples are a little rarer than bins.
    """
    latency_ms = tally.percentiles_by_bin_ms((50, 99))
    rates: dict[int, dict[str, float]] = {}
    for (number, _, kind), count in tally.images.items():
        own = rates.setdefault(number, {})
        own[kind] = own.get(kind, 0.0) + count / tally.bin_s
    numbers = tally.bins()
    rows = []
    for number in numbers:
        end_s, own = (number + 1) * tally.bin_s, rates.get(number, {})
        sample = max((each for each in usage if each.time_s < end_s), key=lambda each: each.time_s, default=None)
        _, user_count = max((each for each in users if each[0] < end_s), default=(0.0, None))
        p50_ms, p99_ms = latency_ms.get(number, [None, None])
        rows.append(
            {
                "elapsed_s": (number - numbers[0]) * tally.bin_s,
                "users": user_count,
                "right_per_s": own.get(Kind.RIGHT.value, 0.0),
                "refused_per_s": own.get(Kind.REFUSED.value, 0.0),
                "failures_per_s": {kind.value: own[kind.value] for kind in FAILURES if kind.value in own},
                "p50_ms": p50_ms,
                "p99_ms": p99_ms,
                "memory_bytes": sample.memory_bytes if sample else None,
                "cores": sample.cores if sample else None,
            }
        )
    return rows


def format_table(summary: Mapping[str, Any]) -> str:
    """Return the table to print."""
    columns = {"all": summary["all"], **summary["by_protocol"]}
    lines = [f"{'images':26}" + "".join(f"{name:>10}" for name in columns)]

    def add(label: str, values: Sequence[str]) -> None:
        lines.append(f"{label:26}" + "".join(f"{value:>10}" for value in values))

    add("sent", [str(column["images"]["sent"]) for column in columns.values()])
    for kind in (Kind.RIGHT, Kind.REFUSED, Kind.UNAVAILABLE, *FAULTS):
        add(_LABELS.get(kind, kind.value), [str(column["images"][kind.value]) for column in columns.values()])
    add("unfinished", [str(column["images"]["unfinished"]) for column in columns.values()])
    add("requests sent", [str(column["requests"]["sent"]) for column in columns.values()])
    for percent in _PERCENTILES:
        add(f"p{percent} ms of right ones", [_format_ms(column[f"p{percent}_ms"]) for column in columns.values()])
    lines.append(f"{summary['right_images_per_s']:.1f} images/s answered right over {summary['duration_s']:.0f} s")
    if summary["server_answers"] is not None:
        arrived = sum(summary["all"]["requests"][kind.value] for kind in (Kind.RIGHT, Kind.WRONG, Kind.CROSSED))
        lines.append(f"{arrived} requests answered; {summary['server_answers']} by the server's own count")
    if summary["server"]:
        start, peak, end = (summary["server"][f"memory_{when}_bytes"] / 1e6 for when in ("start", "peak", "end"))
        lines.append(
            f"server: {start:.0f} MB at the start, {peak:.0f} MB at most, {end:.0f} MB at the end (PSS); "
            f"{summary['server']['mean_cores']:.2f} cores on average"
        )
    return "\n".join(lines)


def _figures(tally: Tally, protocol: str | None) -> dict[str, Any]:
    return {
        "images": {
            "sent": tally.count_sent("images", protocol),
            "unfinished": tally.count_unfinished(protocol),
            **{kind.value: tally.count_images(kind, protocol) for kind in Kind},
        },
        "requests": {
            "sent": tally.count_sent("requests", protocol),
            **{kind.value: tally.count_requests(kind, protocol) for kind in Kind},
        },
        **{f"p{percent}_ms": _or_none(tally.percentile_ms(percent, protocol)) for percent in _PERCENTILES},
    }


def _summarize_usage(usage: Sequence[UsageSample]) -> dict[str, float]:
    if not usage:
        return {}
    return {
        "memory_start_bytes": usage[0].memory_bytes,
        "memory_peak_bytes": max(sample.memory_bytes for sample in usage),
        "memory_end_bytes": usage[-1].memory_bytes,
        "mean_cores": sum(sample.cores for sample in usage[1:]) / max(len(usage) - 1, 1),
    }


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _format_ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def draw_load(timeline: Sequence[Mapping[str, Any]], title: str) -> bytes:
    """Draw the curves above one another.

    Args:
        timeline: Rows of `make_timeline`.
        title: Title of the picture.

    Returns:
        A PNG file.
    """
    watched = any(row["memory_bytes"] is not None for row in timeline)
    # pyplot would choose a backend and keep the figure
    figure = Figure(figsize=(9, 11 if watched else 8), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots(6 if watched else 4, 1, sharex=True)
    seconds = [row["elapsed_s"] for row in timeline]

    def draw(axis: Any, name: str, scale: float = 1.0, **style: Any) -> None:
        values = [float("nan") if row[name] is None else row[name] * scale for row in timeline]
        axis.plot(seconds, values, **{"linewidth": 1.3, **style})

    def add_legend(axis: Any) -> None:
        axis.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=6, fontsize="small", frameon=False)

    draw(axes[0], "users", drawstyle="steps-post", color="tab:gray")
    axes[0].set_ylabel("users")
    draw(axes[1], "right_per_s", label="answered right", color="tab:green")
    draw(axes[1], "refused_per_s", label="bad images refused", color="tab:olive")
    axes[1].set_ylabel("images/s")
    add_legend(axes[1])
    draw(axes[2], "p50_ms", label="p50", color="tab:blue")
    draw(axes[2], "p99_ms", label="p99", color="tab:cyan")
    axes[2].set_ylabel("latency, ms")
    axes[2].set_yscale("log")
    axes[2].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes[2].yaxis.set_major_formatter(ScalarFormatter())
    axes[2].yaxis.set_minor_formatter(NullFormatter())
    add_legend(axes[2])
    for kind, color in zip(FAILURES, _COLORS, strict=True):
        rates = [row["failures_per_s"].get(kind.value, 0.0) for row in timeline]
        if any(rates):
            axes[3].plot(seconds, rates, label=kind.value, color=color, linewidth=1.3)
    if axes[3].lines:
        add_legend(axes[3])
    else:
        axes[3].text(0.5, 0.5, "none", ha="center", va="center", transform=axes[3].transAxes, color="tab:gray")
    axes[3].set_ylabel("failures, images/s")
    if watched:
        draw(axes[4], "memory_bytes", 1e-6, color="tab:blue")
        axes[4].set_ylabel("server, MB (PSS)")
        draw(axes[5], "cores", color="tab:orange")
        axes[5].set_ylabel("server, cores")
    for index, axis in enumerate(axes):
        axis.grid(alpha=0.3)
        if index != 2:
            axis.set_ylim(0, 1.1 * axis.get_ylim()[1])
    axes[-1].set_xlabel("seconds since the start")
    figure.suptitle(title, fontsize="medium")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
