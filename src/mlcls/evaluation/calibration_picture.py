"""Draw a calibration: thresholds, and F1 on the held-out images, before and after."""

from __future__ import annotations

import io
import warnings
from typing import Any, Final

from mlcls.base.pictures import choose_families
from mlcls.errors import MissingExtraError
from mlcls.evaluation.calibration_report import CalibrationReport, LabelCalibration

# Most labels in the picture; of more, those whose F1 changes most.
_MAX_LABELS: Final = 80
_MAX_LABEL_LENGTH: Final = 28
_OLD: Final = "#9a9a9a"
_NEW: Final = "#1f77b4"


def draw_calibration(report: CalibrationReport, title: str) -> bytes:
    """Draw each label's threshold and F1, each as two points: before and after.

    Args:
        report: The calibration.
        title: The picture's title.

    Returns:
        A PNG file.

    Raises:
        MissingExtraError: matplotlib is not installed.
        DatasetError: The font that MLCLS_FONT names cannot be loaded.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingExtraError("train", str(error.name)) from error

    drawn = _choose_labels(report.labels)
    # without pyplot, which would choose a backend and keep the figure
    figure = Figure(figsize=(10, 2.2 + 0.22 * len(drawn)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots(1, 2, sharey=True)
    _draw_pairs(axes[0], [label.old for label in drawn], [label.new for label in drawn], "threshold")
    f1 = [label.before.f1 for label in drawn], [label.after.f1 for label in drawn]
    _draw_pairs(axes[1], *f1, f"F1, {report.held_out_images} held-out images")
    names = [_shorten(label.label) for label in drawn]
    axes[0].set_yticks(range(len(drawn)), names, fontsize=8, fontfamily=choose_families("".join(names)))
    for text in axes[0].get_yticklabels():
        text.set_parse_math(False)  # a label may have dollar signs
    axes[0].set_ylim(len(drawn) - 0.4, -0.6)
    handles, captions = axes[0].get_legend_handles_labels()
    figure.legend(handles, captions, loc="outside lower center", ncols=2, frameon=False)
    shown = "" if len(drawn) == len(report.labels) else f" ({len(drawn)} of {len(report.labels)} labels)"
    before, after = report.before, report.after
    figure.suptitle(
        f"{title}{shown}: {report.objective}\nCF1 {before.per_class.f1:.3f} to {after.per_class.f1:.3f}, "
        f"OF1 {before.pooled.f1:.3f} to {after.pooled.f1:.3f}",
        fontsize=10,
        parse_math=False,
    )
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # choose_families has warned
        figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _choose_labels(labels: tuple[LabelCalibration, ...]) -> list[LabelCalibration]:
    """Return all labels, or if there are too many to read, those whose F1 changes most, in that order."""
    if len(labels) <= _MAX_LABELS:
        return list(labels)
    return sorted(labels, key=_change, reverse=True)[:_MAX_LABELS]


def _change(label: LabelCalibration) -> float:
    difference = abs(label.after.f1 - label.before.f1)
    return difference if difference == difference else -1.0  # NaN last


def _draw_pairs(axes: Any, old: list[float], new: list[float], name: str) -> None:
    rows = range(len(old))
    axes.hlines(rows, old, new, color="#c8c8c8", linewidth=2, zorder=1)
    axes.scatter(old, rows, color=_OLD, s=22, label="before", zorder=2)
    axes.scatter(new, rows, color=_NEW, s=22, label="after", zorder=3)
    axes.set_xlim(-0.03, 1.03)
    axes.set_xlabel(name)
    axes.grid(axis="x", alpha=0.3)
    axes.tick_params(axis="y", length=0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _shorten(label: str) -> str:
    return label if len(label) <= _MAX_LABEL_LENGTH else label[: _MAX_LABEL_LENGTH - 1] + "…"
