"""An axis as JSON, CSV, a table and a picture."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from typing import Final

from matplotlib.ticker import NullFormatter

from benchmarks.growth.axes import Axis, Point, doubling_factors, median_figures
from benchmarks.growth.load import GrowthFigures
from benchmarks.svg_figure import make_figure, set_log_scale, to_svg

# What was measured at each point, one result per turn.
Measured = Mapping[Point, Sequence[GrowthFigures]]

_PROCESSES: Final = ("preprocess", "engine", "postprocess", "tritonserver")
_COLUMNS: Final = (
    *("value", "images/s", "per doubling", "p50, p95, p99 ms"),
    *("core-ms per image: preprocess, engine, rest", "PSS MB", "ready after", "file", "metric series"),
)
_LATENCIES: Final = (("p50_ms", "-"), ("p95_ms", "--"), ("p99_ms", ":"))


def format_json(axis: Axis, measured: Measured, conditions: Mapping[str, str]) -> str:
    """Return all figures of all turns."""
    document = {
        "axis": axis.name,
        "label": axis.label,
        "fixed": axis.fixed,
        "conditions": dict(conditions),
        "points": [
            {
                "series": point.series,
                "value": point.value,
                "clients": point.load.clients,
                "batch_size": point.load.batch_size,
                "models": list(point.load.models),
                "turns": [dataclasses.asdict(figures) for figures in turns],
            }
            for point, turns in measured.items()
        ],
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def format_csv(measured: Measured) -> str:
    """Return the medians, a row for each point."""
    buffer = io.StringIO()
    names = [field.name for field in dataclasses.fields(GrowthFigures) if field.name != "core_ms_per_image"]
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["series", "value", *names, *(f"{name}_core_ms_per_image" for name in _PROCESSES)])
    for point, turns in measured.items():
        figures = median_figures(turns)
        row = [point.series, f"{point.value:g}", *(f"{getattr(figures, name):.6g}" for name in names)]
        writer.writerow(row + [f"{figures.core_ms_per_image.get(name, 0.0):.6g}" for name in _PROCESSES])
    return buffer.getvalue()


def format_table(axis: Axis, measured: Measured) -> str:
    """Return the medians as a Markdown table, and how throughput changes if the value doubles."""
    lines = [
        f"{axis.label}; {axis.fixed}:",
        "",
        f"| {' | '.join(_COLUMNS)} |",
        "|---" * len(_COLUMNS) + "|",
    ]
    factors = _factors(measured)
    for point, turns in measured.items():
        figures = median_figures(turns)
        cost = figures.core_ms_per_image
        rest = sum(spent for name, spent in cost.items() if name not in ("preprocess", "engine"))
        rates = [turn.images_per_s for turn in turns]
        spread = f" ({min(rates):.3g} to {max(rates):.3g})" if len(rates) > 1 else ""
        cells = [
            f"{point.value:g}" + (f", {point.series}" if point.series else ""),
            f"{figures.images_per_s:.3g}{spread}",
            f"x {factors[point]:.2f}" if point in factors else "",
            f"{figures.p50_ms:.0f}, {figures.p95_ms:.0f}, {figures.p99_ms:.0f}",
            f"{cost.get('preprocess', 0.0):.1f}, {cost.get('engine', 0.0):.1f}, {rest:.1f}",
            f"{figures.pss_mb:.0f}",
            f"{figures.ready_s:.1f} s",
            f"{figures.image_bytes / 1e3:.0f} kB",
            f"{figures.metric_series:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw_axis(axis: Axis, measured: Measured) -> str:
    """Return an SVG file of throughput, latency, CPU time and memory over the values."""
    figure, all_axes = make_figure((10, 7), rows=2, columns=2)
    rates, latencies, costs, memory = all_axes
    lines = _lines(measured)
    for index, (series, line) in enumerate(lines.items()):
        values, style = list(line), {"color": f"C{index}", "marker": "o", "markersize": 4}
        medians = [median_figures(turns) for turns in line.values()]
        rates.plot(values, [each.images_per_s for each in medians], label=series, **style)
        spread = [[turn.images_per_s for turn in turns] for turns in line.values()]
        rates.fill_between(values, [min(each) for each in spread], [max(each) for each in spread], alpha=0.15)
        for name, dashes in _LATENCIES:
            latencies.plot(values, [getattr(each, name) for each in medians], dashes, **style)
        memory.plot(values, [each.pss_mb for each in medians], **style)
        for name, dashes in (("preprocess", "--"), ("engine", "-")):
            spent = [each.core_ms_per_image.get(name, 0.0) for each in medians]
            costs.plot(values, spent, dashes, label=f"{name} {series}".strip(), **style)
        spent = [sum(each.core_ms_per_image.values()) for each in medians]
        costs.plot(values, spent, ":", label=f"all {series}".strip(), **style)
    rates.set_ylabel("images/s")
    latencies.set_ylabel("latency of a request, ms")
    latencies.set_title("p50 lines, p95 dashes, p99 dots", fontsize=8)
    costs.set_ylabel("server, core-ms per image")
    memory.set_ylabel("server, MB (PSS)")
    if len(lines) > 1:
        rates.legend(fontsize=7, frameon=False)
    costs.legend(fontsize=7, frameon=False)
    wide = max(point.value for point in measured) / min(point.value for point in measured) > 8
    for each in all_axes:
        each.set_xlabel(axis.label)
        if wide:
            each.set_xscale("log")
            each.set_xticks(sorted({point.value for point in measured}))
            each.xaxis.set_major_formatter("{x:g}")
            each.xaxis.set_minor_formatter(NullFormatter())
    for each in (latencies, costs):
        set_log_scale(each, "y")
    for each in (rates, memory):
        each.set_ylim(bottom=0)
    figure.suptitle(f"{axis.label} ({axis.fixed})", fontsize="medium")
    return to_svg(figure)


def _lines(measured: Measured) -> dict[str, dict[float, Sequence[GrowthFigures]]]:
    lines: dict[str, dict[float, Sequence[GrowthFigures]]] = {}
    for point, turns in measured.items():
        lines.setdefault(point.series, {})[point.value] = turns
    return lines


def _factors(measured: Measured) -> dict[Point, float]:
    factors: dict[Point, float] = {}
    for series, line in _lines(measured).items():
        found = doubling_factors({value: median_figures(turns).images_per_s for value, turns in line.items()})
        factors |= {point: found[point.value] for point in measured if point.series == series and point.value in found}
    return factors
