"""The histogram's size, and which fonts it is written in."""

from __future__ import annotations

import io
import logging
import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib import font_manager
from PIL import Image

from mlcls.base.pictures import choose_families
from mlcls.dataset.pictures import draw_histogram
from mlcls.errors import DatasetError


@pytest.mark.parametrize("labels", [1, 51, 500])
def test_text_keeps_its_size(labels: int) -> None:
    """A row of two bars is never less than 20 pixels high, and a panel at least 500 wide."""
    counts = np.arange(labels) * 50 // labels
    image = Image.open(io.BytesIO(draw_histogram([f"label {number}" for number in range(labels)], counts, counts // 4)))
    panels = math.ceil(labels / 50)
    columns = min(6, panels)
    assert image.height / math.ceil(panels / columns) / math.ceil(labels / panels) >= 20
    assert image.width / columns >= 500
    assert max(image.size) < 4000


def test_counts_of_every_kind() -> None:
    zeros = np.zeros(3, dtype=np.int64)
    for counts in (zeros, np.array([1, 0, 0]), np.array([100_000, 3, 0])):
        assert draw_histogram(["a", "$b^", "x" * 200], counts, zeros).startswith(b"\x89PNG")


def test_bars_show_the_counts() -> None:
    """The longest bar of each color by its pixels: validation has half of training."""
    picture = np.asarray(
        Image.open(io.BytesIO(draw_histogram(["a"], np.array([40]), np.array([20])))).convert("RGB")
    ).astype(int)
    widths = []
    for color in ((0x2F, 0x7D, 0x8C), (0xE0, 0x90, 0x2F)):
        is_color = np.abs(picture - color).max(axis=2) < 12
        widths.append(is_color.sum(axis=1).max())
    assert widths[0] / widths[1] == pytest.approx(2, rel=0.02)


def test_fonts_stand_in_for_one_another(caplog: pytest.LogCaptureFixture) -> None:
    assert choose_families("café собака ελιά") == ["DejaVu Sans"]
    assert not caplog.records
    with caplog.at_level(logging.WARNING, "mlcls"):
        choose_families("\U0010fffd dog \U0010fffc")
    (record,) = caplog.records
    assert "has the characters '\\U0010fffc\\U0010fffd'; install one, or" in record.getMessage()


def test_named_font(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = Path(font_manager.findfont("DejaVu Sans")).with_name("DejaVuSerif.ttf")
    monkeypatch.setenv("MLCLS_FONT", str(path))
    assert choose_families("a") == ["DejaVu Serif", "DejaVu Sans"]
    (tmp_path / "a.ttf").write_text("no font")
    for name in ("a.ttf", "none.ttf"):
        monkeypatch.setenv("MLCLS_FONT", str(tmp_path / name))
        with pytest.raises(DatasetError, match="MLCLS_FONT: expected a TrueType or OpenType font file, got"):
            choose_families("a")
