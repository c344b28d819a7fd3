"""Pictures of an evaluation (precision over recall, bars for each label) and of a calibration (before and after)."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mlcls.base.pictures import choose_families, draw_label_panels, name_rows, new_figure, save_figure, shorten_label
from mlcls.evaluation.calibration_report import CalibrationReport, LabelCalibration
from mlcls.evaluation.evaluate import Evaluation
from mlcls.evaluation.metrics import LabelMetrics, Metrics
from mlcls.model.metrics import interpolate_precision, ranked_precision

# Labels with a color and a name of their own; of more, the worst and the best.
_NAMED: Final = 10
_NAMED_WORST: Final = 6
# Most labels in the picture of a calibration; of more, those whose F1 changes most.
_MAX_CALIBRATED: Final = 80
_RECALLS: Final = np.arange(101) / 100
_AP_COLOR: Final = "#2f7d8c"
_F1_COLOR: Final = "#e0902f"


def draw_precision_recall(evaluation: Evaluation, title: str) -> bytes:
    """Draw as a PNG file each label's precision over its recall, interpolated as in the 11-point average, and the mean.

    A dot marks the label's threshold. Of more than ten labels, the six worst and the four best have colors and names;
    the others are thin and gray.

    Raises:
        MissingExtraError: matplotlib is not installed.
        DatasetError: The font that MLCLS_FONT names cannot be loaded.
    """
    figure = new_figure(9.5, 6)
    import matplotlib

    ranked = sorted(evaluation.metrics.counted, key=lambda row: -row.average_precision)
    named = ranked if len(ranked) <= _NAMED else [*ranked[: _NAMED - _NAMED_WORST], *ranked[-_NAMED_WORST:]]
    others = [row for row in ranked if row not in named]
    curves = {row.class_id: _curve(evaluation, row) for row in ranked}
    axes: Any = figure.subplots()
    for number, row in enumerate(others):
        name = f"{len(others)} other labels" if number == 0 else None
        axes.plot(_RECALLS, curves[row.class_id], color="#9a9a9a", linewidth=0.6, alpha=0.45, label=name)
    colors = matplotlib.colormaps["tab10"].colors  # type: ignore[attr-defined]
    for row, color in zip(named, colors, strict=False):
        name = f"{shorten_label(row.label)}, AP {row.average_precision:.3f}"
        axes.plot(_RECALLS, curves[row.class_id], color=color, linewidth=1.4, label=name)
        if row.predicted:
            axes.plot(row.recall, row.precision, "o", color=color, markersize=5)
    mean = np.mean(list(curves.values()), axis=0)
    axes.plot(_RECALLS, mean, "k--", linewidth=2, label=f"mean, mAP {evaluation.metrics.overall['MultiLabelMAP']:.3f}")
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.02, 1.03)
    axes.set_xlabel("recall")
    axes.set_ylabel("precision (dots: at the threshold)")
    axes.grid(alpha=0.3)
    families = choose_families("".join(row.label for row in named))
    legend = figure.legend(loc="outside right upper", fontsize=9, frameon=False, prop={"family": families, "size": 9})
    for text in legend.get_texts():
        text.set_parse_math(False)  # a label may have dollar signs
    figure.suptitle(title, parse_math=False)
    return save_figure(figure)


def draw_per_class(metrics: Metrics) -> bytes:
    """Draw as a PNG file each label's average precision and F1 at the threshold, the best first, at most 50 in a panel.

    Labels that no image has come last, without bars.

    Raises:
        MissingExtraError: matplotlib is not installed.
        DatasetError: The font that MLCLS_FONT names cannot be loaded.
    """
    rows = metrics.per_class
    order = np.array(sorted(range(len(rows)), key=lambda index: -np.nan_to_num(rows[index].average_precision, nan=-1)))

    def draw_panel(axes: Any, panel: npt.NDArray[np.intp]) -> None:
        positions = np.arange(len(panel))
        for name, color, offset, shown in (
            ("average_precision", _AP_COLOR, -0.21, "average precision"),
            ("f1", _F1_COLOR, 0.21, "F1 at the threshold"),
        ):
            values = np.array([getattr(rows[index], name) for index in panel], np.float64)
            bars = axes.barh(positions + offset, np.nan_to_num(values), height=0.4, color=color, label=shown)
            texts = ["" if np.isnan(value) else f"{value:.3f}" for value in values]
            axes.bar_label(bars, labels=texts, fontsize=6.5, padding=2, color="#3a3a3a")
        for position, index in zip(positions, panel, strict=True):
            if not rows[index].positives:
                axes.text(0.01, position, "no image has it", fontsize=6.5, va="center", color="#3a3a3a")
        axes.set_xlim(0, 1.12)

    counted = len(metrics.counted)
    title = f"mAP {metrics.overall['MultiLabelMAP']:.4f} ({counted} of {len(rows)} labels counted)"
    return draw_label_panels([row.label for row in rows], order, draw_panel, title)


def draw_calibration(report: CalibrationReport, title: str) -> bytes:
    """Draw as a PNG file each label's threshold and F1 on the held-out images, as two points each: before and after.

    Raises:
        MissingExtraError: matplotlib is not installed.
        DatasetError: The font that MLCLS_FONT names cannot be loaded.
    """

    def change(label: LabelCalibration) -> float:
        return float(np.nan_to_num(abs(label.after.f1 - label.before.f1), nan=-1))

    drawn, shown = report.labels, ""
    if len(drawn) > _MAX_CALIBRATED:
        drawn = sorted(drawn, key=change, reverse=True)[:_MAX_CALIBRATED]
        shown = f" ({len(drawn)} of {len(report.labels)} labels)"
    figure = new_figure(10, 2.2 + 0.22 * len(drawn))
    rows = range(len(drawn))
    pairs = {
        "threshold": [(label.old, label.new) for label in drawn],
        f"F1, {report.held_out_images} held-out images": [(label.before.f1, label.after.f1) for label in drawn],
    }
    grid: Any = figure.subplots(1, 2, sharey=True)
    for axes, (name, values) in zip(grid, pairs.items(), strict=True):
        old, new = zip(*values, strict=True)
        axes.hlines(rows, old, new, color="#c8c8c8", linewidth=2, zorder=1)
        axes.scatter(old, rows, color="#9a9a9a", s=22, label="before", zorder=2)
        axes.scatter(new, rows, color="#1f77b4", s=22, label="after", zorder=3)
        axes.set_xlim(-0.03, 1.03)
        axes.set_xlabel(name)
        axes.grid(axis="x", alpha=0.3)
        axes.tick_params(axis="y", length=0)
        axes.spines[["top", "right"]].set_visible(False)
    names = [label.label for label in drawn]
    name_rows(grid[0], names, choose_families("".join(names)))
    grid[0].set_ylim(len(drawn) - 0.4, -0.6)
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    before, after = report.before, report.after
    figure.suptitle(
        f"{title}{shown}: {report.objective}\nCF1 {before.per_class.f1:.3f} to {after.per_class.f1:.3f}, "
        f"OF1 {before.pooled.f1:.3f} to {after.pooled.f1:.3f}",
        fontsize=10,
        parse_math=False,
    )
    return save_figure(figure)


def _curve(evaluation: Evaluation, row: LabelMetrics) -> npt.NDArray[np.float64]:
    index = row.class_id
    return interpolate_precision(ranked_precision(evaluation.scores[:, index], evaluation.targets[:, index]), _RECALLS)
