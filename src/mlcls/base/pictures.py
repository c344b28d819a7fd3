"""Charts: the one setup of matplotlib, fonts that have all characters, and rows that are named by labels."""

from __future__ import annotations

import io
import logging
import math
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mlcls.errors import DatasetError, MissingExtraError

# Environment variable with a font file for labels, the same as the client's.
FONT_VARIABLE: Final = "MLCLS_FONT"

_ROWS_PER_PANEL: Final = 50
_MAX_COLUMNS: Final = 6
_PANEL_WIDTH_IN: Final = 5.0
_ROW_HEIGHT_IN: Final = 0.24
_DPI: Final = 120
_MAX_SIDE_PX: Final = 30_000
_MAX_LABEL_LENGTH: Final = 28

logger = logging.getLogger("mlcls")


def require_matplotlib() -> None:
    """Check that matplotlib is installed, before long work whose result is to be drawn.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtraError("train", str(error.name)) from error


def new_figure(width_in: float, height_in: float, dpi: float = 110) -> Any:
    """Return an empty figure, to be saved with `save_figure`.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # without pyplot, which would choose a backend and keep a reference to the figure
    figure = Figure(figsize=(width_in, height_in), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Any) -> bytes:
    """Return a figure as a PNG file, without matplotlib's warnings of characters that `choose_families` has logged."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(buffer, format="png")
    return buffer.getvalue()


def draw_label_panels(
    labels: Sequence[str],
    order: npt.NDArray[np.intp],  # (num_rows,)
    draw_panel: Callable[[Any, npt.NDArray[np.intp]], None],
    title: str,
) -> bytes:
    """Draw a row for each class id of `order`, from the top, in panels of at most 50 rows; return a PNG file.

    `draw_panel` draws one panel, given its axes and its class ids; artists that it labels are listed in the legend.

    Raises:
        MissingExtraError: matplotlib is not installed.
        DatasetError: The font that MLCLS_FONT names cannot be loaded.
    """
    panel_count = max(1, math.ceil(len(order) / _ROWS_PER_PANEL))
    panel_rows = max(1, math.ceil(len(order) / panel_count))
    columns = min(panel_count, _MAX_COLUMNS)
    rows = math.ceil(panel_count / columns)
    height = rows * (_ROW_HEIGHT_IN * panel_rows + 0.7) + 0.6
    width = max(columns * _PANEL_WIDTH_IN, 8.0)
    figure = new_figure(width, height, min(_DPI, _MAX_SIDE_PX / max(width, height)))
    families = choose_families("".join(labels))
    grid: Any = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    for number, axes in enumerate(grid):
        panel = order[number * panel_rows : (number + 1) * panel_rows]
        if number >= panel_count:
            axes.axis("off")
            continue
        draw_panel(axes, panel)
        name_rows(axes, [labels[index] for index in panel], families)
        axes.tick_params(axis="x", labelsize=7)
        axes.grid(axis="x", alpha=0.25)
        axes.set_axisbelow(True)
        axes.set_ylim(panel_rows - 0.4, -0.6)
    handles, names = grid[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper right", ncols=2, frameon=False)
    figure.suptitle(title, x=0.01, ha="left")
    return save_figure(figure)


def name_rows(axes: Any, labels: Sequence[str], families: Sequence[str]) -> None:
    """Name the rows of axes by labels, which are cut to 28 characters, in the fonts of `choose_families`."""
    axes.set_yticks(range(len(labels)), map(shorten_label, labels), fontsize=8, fontfamily=families)
    for text in axes.get_yticklabels():
        text.set_parse_math(False)  # a label may contain dollar signs
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right"]].set_visible(False)


def choose_families(text: str) -> list[str]:
    """Return font families that together have the characters of a text; log the characters that no font has.

    The first family is that of the file in MLCLS_FONT, or else matplotlib's own DejaVu Sans.

    Raises:
        DatasetError: The named font cannot be loaded.
    """
    from matplotlib import font_manager

    families = ["DejaVu Sans"]
    named = os.environ.get(FONT_VARIABLE)
    if named:
        try:
            font_manager.fontManager.addfont(named)
            families.insert(0, font_manager.FontProperties(fname=named).get_name())
        except (OSError, RuntimeError) as error:
            raise DatasetError(
                f"{FONT_VARIABLE}: expected a TrueType or OpenType font file, got {named!r}: {error}."
            ) from None
    missing = {ord(character) for character in text if not character.isspace()}
    for family in families:
        missing -= _characters_of(font_manager.findfont(family))
    for entry in sorted(font_manager.fontManager.ttflist, key=lambda entry: (entry.style != "normal", entry.name)):
        if not missing:
            break
        found = missing & _characters_of(entry.fname) if entry.name not in families else set()
        if found:
            families.append(entry.name)
            missing -= found
    if missing:
        shown = "".join(map(chr, sorted(missing)[:40]))
        logger.warning(
            "no font on this machine has the characters %r; install one, or name its file with %s", shown, FONT_VARIABLE
        )
    return families


def shorten_label(label: str) -> str:
    """Return a label cut to 28 characters."""
    return label if len(label) <= _MAX_LABEL_LENGTH else label[: _MAX_LABEL_LENGTH - 1] + "…"


def _characters_of(path: str) -> set[int]:
    from matplotlib import font_manager

    if Path(path).name.startswith("LastResort"):  # has a placeholder for every character
        return set()
    try:
        return set(font_manager.get_font(path).get_charmap())
    except (OSError, RuntimeError):  # the file is gone, or FreeType cannot read it
        return set()
