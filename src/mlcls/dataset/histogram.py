"""The histogram of a dataset: for each label, how many training and validation images have it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mlcls.base.pictures import draw_label_panels

_COLORS: Final = {"train": "#2f7d8c", "val": "#e0902f"}
# Where the longest bar is this many times the middle one, most bars would be too short to see on a linear scale.
_LONG_TAIL: Final = 20


def draw_histogram(
    labels: Sequence[str], train_counts: npt.NDArray[np.int64], val_counts: npt.NDArray[np.int64]
) -> bytes:
    """Draws two bars for each label, most frequent in training first, with the counts as numbers.

    Labels stand in panels of at most 50 beside and below one another, so that the text keeps its size however many
    there are. The scale, the same in all panels, is logarithmic where few labels have most of the images.

    Args:
        labels: The labels.
        train_counts: (num_labels,) training images with each label.
        val_counts: (num_labels,) validation images with each label.

    Returns:
        A PNG file.

    Raises:
        MissingExtraError: matplotlib is not installed.
        DatasetError: The font that MLCLS_FONT names cannot be loaded.
    """
    order = np.lexsort((np.arange(len(labels)), -val_counts, -train_counts))
    scale = _Scale.of(np.concatenate([train_counts, val_counts]))

    def draw_panel(axes: Any, panel: npt.NDArray[np.intp]) -> None:
        counts = {"train": train_counts[panel], "val": val_counts[panel]}
        _draw_panel(axes, counts)
        scale.apply(axes)

    return draw_label_panels(labels, order, draw_panel, f"Images with each label ({len(labels)} labels)")


class _Scale:
    """The scale of the counts, the same in all panels."""

    def __init__(self, longest: int, *, is_logarithmic: bool) -> None:
        self._longest = longest
        self._is_logarithmic = is_logarithmic

    @classmethod
    def of(cls, counts: npt.NDArray[np.int64]) -> _Scale:
        positive = counts[counts > 0]
        if not positive.size:
            return cls(1, is_logarithmic=False)
        return cls(int(positive.max()), is_logarithmic=bool(positive.max() > _LONG_TAIL * np.median(positive)))

    def apply(self, axes: Any) -> None:
        if self._is_logarithmic:
            axes.set_xscale("symlog", linthresh=1)  # a count may be 0
            axes.set_xlim(0, self._longest**1.15)
            axes.set_xlabel("images, logarithmic scale", fontsize=8)
        else:
            axes.set_xlim(0, self._longest * 1.12)
            axes.set_xlabel("images", fontsize=8)
            axes.xaxis.get_major_locator().set_params(integer=True)


def _draw_panel(axes: Any, counts: dict[str, npt.NDArray[np.int64]]) -> None:
    positions = np.arange(len(counts["train"]))
    for (part, values), offset in zip(counts.items(), (-0.21, 0.21), strict=True):
        bars = axes.barh(positions + offset, values, height=0.4, color=_COLORS[part], label=part)
        axes.bar_label(bars, fontsize=6.5, padding=2, color="#3a3a3a")
