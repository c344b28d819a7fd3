"""Draw an evaluation: precision over recall, and bars for each label."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mlcls.base.pictures import choose_families, draw_label_panels, require_matplotlib, save_figure, shorten_label
from mlcls.evaluation.evaluate import Evaluation
from mlcls.evaluation.metrics import LabelMetrics, Metrics
from mlcls.model.metrics import interpolate_precision, ranked_precision

# Labels with a color and a name of their own; of more, the worst and the best.
_NAMED: Final = 10
_NAMED_WORST: Final = 6
_RECALLS: Final = np.arange(101) / 100
_AP_COLOR: Final = "#2f7d8c"
_F1_COLOR: Final = "#e0902f"


def draw_precision_recall(evaluation: Evaluation, title: str) -> bytes:
    """Draw each label's precision over its recall, interpolated as for the 11-point average, and their mean.

    A dot marks the label's threshold. Of more than ten labels, the six worst and the four best have colors and names;
    the others are thin and gray.

    Returns:
        A PNG file.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require_matplotlib()
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ranked = sorted(evaluation.metrics.counted, key=lambda row: -row.average_precision)
    named = ranked if len(ranked) <= _NAMED else [*ranked[: _NAMED - _NAMED_WORST], *ranked[-_NAMED_WORST:]]
    others = [row for row in ranked if row not in named]
    curves = {row.class_id: _curve(evaluation, row) for row in ranked}
    figure = Figure(figsize=(9.5, 6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
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
    metrics = evaluation.metrics.overall
    axes.plot(_RECALLS, mean, "k--", linewidth=2, label=f"mean, mAP {metrics['MultiLabelMAP']:.3f}")
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
    return save_figure(figure, 110)


def draw_per_class(metrics: Metrics) -> bytes:
    """Draw each label's average precision and F1 at the threshold, the best first, in panels of at most 50.

    Labels that no image has come last, without bars.

    Returns:
        A PNG file.

    Raises:
        MissingExtraError: matplotlib is not installed.
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


def _curve(evaluation: Evaluation, row: LabelMetrics) -> npt.NDArray[np.float64]:
    index = row.class_id
    return interpolate_precision(ranked_precision(evaluation.scores[:, index], evaluation.targets[:, index]), _RECALLS)
