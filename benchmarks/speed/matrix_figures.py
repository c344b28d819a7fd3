"""The report's pictures, as SVG."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from benchmarks.speed.matrix_cells import CellResult, steps_of
from benchmarks.svg_figure import make_figure, set_log_scale, to_svg
from mlcls.model.catalog import OFFICIAL_MODELS

_COLORS: Final = {"preprocess": "tab:blue", "engine": "tab:orange", "postprocess": "tab:green"}
_LATENCIES: Final = (("p50_ms", "-", "o"), ("p95_ms", "--", "s"), ("p99_ms", ":", "^"))


def draw_loads(results: Sequence[CellResult]) -> str:
    """Draw a model's throughput and latency over the requests in flight; a line for each engine, protocol and batch."""
    figure, (left, right) = make_figure((11, 4.2), columns=2)
    for index, (name, line) in enumerate(_lines_of(results).items()):
        color = f"C{index % 10}"
        clients = [result.cell.concurrency for result in line]
        rates = [result.figures.images_per_s for result in line if result.figures]
        left.plot(clients, rates, "-", marker="o", markersize=4, color=color, label=name)
        for percentile, style, marker in _LATENCIES:
            values = [getattr(result.figures, percentile) for result in line]
            right.plot(clients, values, style, marker=marker, markersize=3, linewidth=1.2, color=color)
    left.set_ylabel("images/s")
    left.set_ylim(bottom=0)
    left.legend(fontsize=7, frameon=False)
    right.set_ylabel("latency of a request, ms")
    right.set_title("p50 lines, p95 dashes, p99 dots", fontsize=8)
    set_log_scale(right, "y")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("requests in flight")
    return to_svg(figure)


def draw_steps(results: Sequence[CellResult]) -> str:
    """Draw the mean times of each step, queue and compute, stacked to the client's latency; a bar for each load."""
    measured = [result for result in results if steps_of(result)]
    figure, (axes,) = make_figure((11, 0.7 + 0.32 * len(measured)))
    names = list(dict.fromkeys(name for result in measured for name in steps_of(result)))
    rest = [result.figures.mean_ms if result.figures else 0.0 for result in measured]
    start = [0.0] * len(measured)

    def stack(values: list[float], **style: Any) -> None:
        nonlocal start
        axes.barh(range(len(measured)), values, left=start, height=0.7, **style)
        start = [one + other for one, other in zip(start, values, strict=True)]

    for name in names:
        color = _COLORS.get(name, "tab:gray")
        queue = [steps_of(result)[name].queue_ms for result in measured]
        compute = [steps_of(result)[name].compute_ms for result in measured]
        stack(queue, color=color, alpha=0.35, hatch="///", edgecolor="white", label=f"{name}: queue")
        stack(compute, color=color, label=f"{name}: compute")
    around = [max(mean - steps, 0.0) for mean, steps in zip(rest, start, strict=True)]
    stack(around, color="lightgray", label="around the steps: protocol, copies, client")
    axes.set_yticks(range(len(measured)), [_describe_load(result) for result in measured], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("mean time of a request, ms")
    axes.legend(fontsize=7, frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=4)
    return to_svg(figure)


def draw_plane(fastest: Mapping[str, float]) -> str:
    """Speed against the published mAP.

    Args:
        fastest: Highest throughput in images per second of official models, by name.
    """
    figure, (axes,) = make_figure((8, 5))
    for name, images_per_s in fastest.items():
        accuracy = OFFICIAL_MODELS[name].mean_average_precision
        axes.plot(images_per_s, accuracy, "o", markersize=8, color="tab:blue")
        axes.annotate(name, (images_per_s, accuracy), textcoords="offset points", xytext=(8, 5), fontsize=8)
    set_log_scale(axes, "x")
    axes.margins(x=0.25, y=0.12)
    axes.set_xlabel("images/s of the served model, highest measured here")
    axes.set_ylabel("mAP on COCO2017 as published, official weights")
    return to_svg(figure)


def _lines_of(results: Sequence[CellResult]) -> dict[str, list[CellResult]]:
    lines: dict[str, list[CellResult]] = {}
    order: Callable[[CellResult], Any] = lambda result: result.cell  # noqa: E731
    for result in sorted((each for each in results if each.figures), key=order):
        cell = result.cell
        images = "1 image" if cell.batch_size == 1 else f"{cell.batch_size} images"
        lines.setdefault(f"{cell.target}, {cell.protocol}, {images} a request", []).append(result)
    return lines


def _describe_load(result: CellResult) -> str:
    cell = result.cell
    return f"{cell.target} {cell.protocol}, {cell.concurrency} in flight, of {cell.batch_size}"
