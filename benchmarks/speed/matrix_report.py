"""The matrix as one self-contained HTML file: tables, pictures, and where and how it was measured."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any, Final

from benchmarks.speed.matrix_cells import CellResult, ResultFolder, steps_of
from benchmarks.svg_figure import make_figure, set_log_scale, to_svg
from mlcls.model.catalog import OFFICIAL_MODELS
from mlcls.repository.settings import TARGETS

REPORT_FILE: Final = "report.html"

_STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; font-size: 13px; margin: 1rem 0; }
th, td { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid #ddd; }
th { text-align: right; border-bottom: 2px solid #888; }
th:first-child, td:first-child { text-align: left; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; font-size: 13px; }
dd { margin: 0; }
img { max-width: 100%; }
"""

# What a reader must know about the figures.
_NOTES: Final = """\
A load is a number of requests in flight: as soon as one is answered, the next is sent. The load generator runs on the \
server's machine and shares its cores.
Each figure is the mean of three time windows in a row whose throughput and mean latency differ by no more than the \
percentage above; earlier windows do not count. A star marks loads without three such windows: something else used the \
machine, or too few requests end in a window.
The server's CPU time is that of all requests of a load, including those before the windows.
Figures are comparable within one run, but not with those of another machine or another day.
"""

_COLORS: Final = {"preprocess": "tab:blue", "engine": "tab:orange", "postprocess": "tab:green"}
_LATENCIES: Final = (("p50_ms", "-", "o"), ("p95_ms", "--", "s"), ("p99_ms", ":", "^"))


def format_report(folder: ResultFolder, command: str) -> str:
    """Return the report.

    Args:
        folder: The results.
        command: The command line that produced them.

    Returns:
        An HTML document with embedded pictures.
    """
    results = list(folder.results.values())
    parts = [
        "<h1>Speed of the served models</h1>",
        f"<p>{escape(_describe_time(results))}</p>",
        _format_facts({"command": command, **folder.conditions}),
        "<ul>" + "".join(f"<li>{escape(note)}</li>" for note in _NOTES.splitlines()) + "</ul>",
        "<h2>Best of each model</h2>",
        _format_best(results),
        _format_plane(results),
    ]
    for model in dict.fromkeys(result.cell.model for result in results):
        parts += _format_model(model, [result for result in results if result.cell.model == model])
    parts.append(_format_not_run(results))
    title = "Speed of the served models"
    head = f'<meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(parts) + "\n</body></html>\n"


def find_fastest(results: Iterable[CellResult], target: str | None = None) -> dict[str, CellResult]:
    """Return each model's load with the highest throughput, on one engine or on any."""
    fastest: dict[str, CellResult] = {}
    for result in results:
        if result.figures is None or target not in (None, result.cell.target):
            continue
        best = fastest.get(result.cell.model)
        if best is None or best.figures is None or result.figures.images_per_s > best.figures.images_per_s:
            fastest[result.cell.model] = result
    return fastest


def _describe_time(results: Sequence[CellResult]) -> str:
    times = sorted(result.measured_at for result in results)
    return f"Measured from {times[0]} to {times[-1]}." if times else "Nothing was measured."


def _format_facts(facts: Mapping[str, str]) -> str:
    return (
        "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items()) + "</dl>"
    )


def _format_best(results: Sequence[CellResult]) -> str:
    """Return a row for each model and engine: the highest throughput, and the latency of a single image."""
    header = (
        "model",
        "engine",
        "highest images/s",
        "at",
        "p50 ms",
        "p99 ms",
        "single image, p50 ms",
        "core-ms an image",
        "PSS MB",
    )
    rows = []
    for target in dict.fromkeys(result.cell.target for result in results):
        for model, best in find_fastest(results, target).items():
            figures, cell = best.figures, best.cell
            lone = [
                result.figures.p50_ms
                for result in results
                if result.figures
                and (result.cell.model, result.cell.target) == (model, target)
                and result.cell.concurrency == result.cell.batch_size == 1
            ]
            if figures is None:
                continue
            cost = best.cost
            rows.append(
                (
                    model,
                    target,
                    _star(f"{figures.images_per_s:.1f}", figures.stable),
                    f"{cell.protocol}, {cell.concurrency} in flight, of {cell.batch_size}",
                    f"{figures.p50_ms:.1f}",
                    f"{figures.p99_ms:.1f}",
                    f"{min(lone):.1f}" if lone else "-",
                    f"{cost.total_core_ms:.1f}" if cost else "-",
                    f"{cost.pss_mb:.0f}" if cost else "-",
                )
            )
    return _format_table(header, rows)


def _format_plane(results: Sequence[CellResult]) -> str:
    fastest = {
        name: best.figures.images_per_s
        for name, best in find_fastest(results, "embedded").items()
        if name in OFFICIAL_MODELS and best.figures
    }
    if not fastest:
        return ""
    caption = (
        "Speed as measured here on the engine `embedded` (FP32), against the mAP on COCO2017 that PaddleX publishes "
        "for the official weights. The mAP was not measured here and says nothing about a model with other weights. "
        "Speed does not depend on the weights."
    )
    return f"<h2>Speed and accuracy</h2><p>{escape(caption)}</p>{_embed(draw_plane(fastest), 'speed and mAP')}"


def _format_model(model: str, results: Sequence[CellResult]) -> list[str]:
    parts = [f"<h2>{escape(model)}</h2>"]
    if any(result.figures for result in results):
        parts.append(_embed(draw_loads(results), f"throughput and latency of {model}"))
    if any(steps_of(result) for result in results):
        parts.append("<p>Where the time of a request goes, according to the server:</p>")
        parts.append(_embed(draw_steps(results), f"times of the steps of {model}"))
    header = ["engine", "protocol", "in flight", "batch", "images/s", "mean ms", "p50", "p95", "p99"]
    steps = list(dict.fromkeys(name for result in results for name in steps_of(result)))
    header += [f"{name}: queue, compute ms" for name in steps] + [
        "images a batch",
        "cores",
        "core-ms an image",
        "PSS MB",
    ]
    parts.append(_format_table(header, [_format_row(result, steps) for result in results]))
    return parts


def _format_row(result: CellResult, steps: Sequence[str]) -> list[str]:
    cell, figures, times, cost = result.cell, result.figures, steps_of(result), result.cost
    row = [cell.target, cell.protocol, str(cell.concurrency), str(cell.batch_size)]
    if figures is None:
        return [*row, f"{result.status}: {result.note}"]
    row.append(_star(f"{figures.images_per_s:.1f}", figures.stable))
    row += [f"{value:.1f}" for value in (figures.mean_ms, figures.p50_ms, figures.p95_ms, figures.p99_ms)]
    row += [f"{times[name].queue_ms:.1f}, {times[name].compute_ms:.1f}" if name in times else "-" for name in steps]
    row.append(f"{times['engine'].images_per_execution:.1f}" if "engine" in times else "-")
    if cost is not None:
        row += [
            f"{cost.total_core_ms * figures.images_per_s / 1e3:.2f}",
            f"{cost.total_core_ms:.1f}",
            f"{cost.pss_mb:.0f}",
        ]
    return row


def _format_not_run(results: Sequence[CellResult]) -> str:
    run = {result.cell.target for result in results}
    missing = [target for target in TARGETS if target not in run]
    where = {
        "int8": "no model here has an INT8 engine; mlcls build-engine MODEL --engine int8",
        "cpu": "Triton's onnxruntime backend, in the container",
        "gpu": "Triton's tensorrt backend, in the container, on a GPU",
    }
    items = "".join(f"<li>{target}: {escape(where.get(target, 'not asked for'))}</li>" for target in missing)
    return f"<h2>Not run</h2><ul>{items}</ul>" if items else ""


def _star(text: str, stable: bool) -> str:
    return text if stable else f"{text} *"


def _format_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["<table><tr>" + "".join(f"<th>{escape(name)}</th>" for name in header) + "</tr>"]
    for row in rows:
        cells = "".join(f"<td>{escape(text)}</td>" for text in row[:-1])
        span = f' colspan="{len(header) - len(row) + 1}"' if len(row) < len(header) else ""
        lines.append(f"<tr>{cells}<td{span}>{escape(row[-1])}</td></tr>")
    return "\n".join([*lines, "</table>"])


def _embed(svg: str, text: str) -> str:
    data = base64.b64encode(svg.encode()).decode()
    return f'<p><img alt="{escape(text)}" src="data:image/svg+xml;base64,{data}"></p>'


def draw_loads(results: Sequence[CellResult]) -> str:
    """Draw a model's throughput and latency over requests in flight, a line per engine, protocol and batch."""
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
    """Draw each step's mean queue and compute times, stacked to the client's latency, a bar per load."""
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
    """Draw speed against the published mAP.

    Args:
        fastest: Highest throughput of official models in images per second, by name.
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
