"""Annotated pictures: the photo untouched, every label in the panel, nothing cut off, at any size."""

import io
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlcls_client import InputError
from mlcls_client.pictures import fonts
from mlcls_client.pictures.caption import Item, lay_out_names, lay_out_scores, wrap_text
from mlcls_client.pictures.drawing import (
    PANEL_COLOR,
    draw_labels,
    draw_names,
    font_size,
    open_image,
    picture_width,
)
from mlcls_client.pictures.fonts import Fonts, choose_fonts, load_font

NAMES = ["banana", "orange", "apple", "bowl", "dining table", "knife", "bottle"]
SCORES = [0.99972, 0.99601, 0.99277, 0.65718, 0.56914, 0.56436, 0.52865]
LONG_NAMES = ["a name that goes on " * 6, "unbroken" * 12, "x", "jäger"]
# (height, width): thumbnail, photo, portrait, large, panorama, strip, tower
SIZES = [(48, 64), (480, 640), (640, 480), (4000, 6000), (800, 6000), (30, 3000), (4000, 200), (1, 1)]


def photo(height: int, width: int) -> Image.Image:
    ramp = np.linspace(0, 200, 64)
    channels = np.stack([*np.meshgrid(ramp, ramp), np.full((64, 64), 100.0)], axis=2)
    return Image.fromarray(channels.astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST)


class Written(Fonts):
    """Pillow's font, which notes what is drawn."""

    def __init__(self, size: int) -> None:
        super().__init__([load_font("", size)], size)
        self.texts: list[str] = []

    def draw(self, text: str, color: tuple[int, int, int]) -> Image.Image:
        self.texts.append(text)
        return super().draw(text, color)


def lay_out(
    height: int, width: int, names: Sequence[str], scores: Sequence[float]
) -> tuple[int, list[Item], list[str]]:
    written = Written(font_size(height, width))
    panel_height, items = lay_out_scores(width, names, scores, written)
    return panel_height, items, written.texts


def check_panel(picture: Image.Image, height: int) -> None:
    panel = np.asarray(picture.crop((0, height, picture.width, picture.height)))
    assert (panel != PANEL_COLOR).any(axis=2).mean() > 0.01
    # Nothing reaches the edge, so nothing is cut by it.
    for edge in (panel[:3], panel[-3:], panel[:, :3], panel[:, -3:]):
        assert (edge == PANEL_COLOR).all()


def check_places(width: int, height: int, items: Sequence[Item]) -> None:
    boxes = []
    for picture, left, top in items:
        ink = picture.getchannel("A").getbbox() or (0, 0, 0, 0)
        assert left + ink[0] >= 3 and left + ink[2] <= width - 3
        assert top + ink[1] >= 3 and top + ink[3] <= height - 3
        boxes.append((left + ink[0], top + ink[1], left + ink[2], top + ink[3]))
    for one, other in combinations(boxes, 2):
        assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]


@pytest.mark.parametrize("with_scores", [True, False])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_photo_stays_as_it_is_and_a_panel_comes_below(height: int, width: int, with_scores: bool) -> None:
    image = photo(height, width)
    picture = draw_labels(image, NAMES, SCORES) if with_scores else draw_names(image, NAMES)
    assert picture.mode == "RGB"
    assert picture.width == picture_width(height, width) >= max(width, 320)
    left = (picture.width - width) // 2
    assert np.array_equal(np.asarray(picture.crop((left, 0, left + width, height))), np.asarray(image))
    check_panel(picture, height)


@pytest.mark.parametrize("names", [NAMES, LONG_NAMES, ["one"], [f"label {i}" for i in range(80)]])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_every_text_and_bar_has_a_place_of_its_own(height: int, width: int, names: list[str]) -> None:
    width = picture_width(height, width)
    panel_height, items, _ = lay_out(height, width, names, [1 - index / 100 for index in range(len(names))])
    check_places(width, panel_height, items)
    check_places(width, *lay_out_names(width, names, Written(font_size(height, width))))


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_text_is_readable_when_the_picture_fills_a_screen(height: int, width: int) -> None:
    shown_width = picture_width(height, width)
    size = font_size(height, shown_width)
    assert size >= 13
    assert size * min(1.0, 1500 / shown_width, 1500 / height) >= 13


def test_all_labels_and_scores_are_written_in_order() -> None:
    _, items, texts = lay_out(480, 640, NAMES, SCORES)
    assert texts == [f"{score:.3f}" for score in SCORES] + NAMES
    assert len({left for _, left, _ in items[::3]}) == 2, "two columns at this width"
    assert len({left for _, left, _ in lay_out(800, 6000, NAMES, SCORES)[1][::3]}) == 4


def test_bars_are_as_long_as_their_scores() -> None:
    scores = [1.0, 0.5, 0.0, 7.0, -1.0]
    bars = [item[0] for item in lay_out(480, 640, ["a"] * 5, scores)[1][1::3]]
    for bar, score in zip(bars, scores, strict=True):
        row = np.asarray(bar)[bar.height // 2]
        assert (row[:, 0] < 100).mean() == pytest.approx(min(max(score, 0), 1), abs=0.02)


def test_long_names_go_on_in_further_lines_without_loss() -> None:
    texts = lay_out(48, 320, LONG_NAMES[:2], [0.9, 0.8])[2][2:]
    assert "".join(texts).replace(" ", "") == "".join(LONG_NAMES[:2]).replace(" ", "")
    assert " ".join(texts).startswith(LONG_NAMES[0].strip())


def test_only_a_name_beyond_six_lines_ends_in_an_ellipsis() -> None:
    font = Written(16)
    lines = wrap_text("word " * 200, 200, font)
    assert len(lines) == 6
    assert lines[-1].endswith("…")
    assert all(font.width(line) <= 200 for line in lines)
    assert wrap_text("word", 200, font) == ["word"]


def test_no_label_is_said_in_words() -> None:
    assert draw_labels(photo(480, 640), [], []) == draw_names(photo(480, 640), ["no label above the threshold"])
    assert draw_names(photo(480, 640), []) == draw_names(photo(480, 640), ["no label"])


def test_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    photo(40, 80).save(buffer, format="JPEG", exif=exif)
    assert open_image(buffer.getvalue()).size == (40, 80)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "I", "F"])
def test_any_mode_can_be_drawn(mode: str) -> None:
    gray = np.tile(np.linspace(0, 255, 64), (48, 1))
    if mode in ("I;16", "I"):
        image = Image.fromarray((gray * 257).astype(np.uint16 if mode == "I;16" else np.int32))
    elif mode == "F":
        image = Image.fromarray(gray.astype(np.float32))
    else:
        image = Image.fromarray(gray.astype(np.uint8)).convert(mode)
    assert image.mode == mode
    drawn = np.asarray(draw_labels(image, NAMES, SCORES))[:48, 128:192, 0]
    assert drawn[:, :8].mean() < 60
    assert drawn[:, -8:].mean() > 190
    assert mode == "1" or 90 < drawn[:, 28:36].mean() < 165


@pytest.mark.parametrize(
    ("scores", "message"),
    [([], "one finite score per label"), ([float("nan")], "one finite score per label"), ([0.5], r"no/such/font\.ttf")],
)
def test_what_cannot_be_drawn(monkeypatch: pytest.MonkeyPatch, scores: list[float], message: str) -> None:
    monkeypatch.setenv("MLCLS_FONT", "no/such/font.ttf")
    with pytest.raises(InputError, match=message):
        draw_labels(photo(10, 10), ["a"], scores)


@pytest.fixture
def fresh_fonts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder, which is the only one with fonts of the system."""
    folder = tmp_path / "fonts" / "truetype"
    folder.mkdir(parents=True)
    monkeypatch.delenv("MLCLS_FONT", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_DIRS", str(tmp_path / "none"))
    for cached in ("_font_files", "_fonts_for"):
        monkeypatch.setattr(fonts, cached, getattr(fonts, cached).__wrapped__)
    return folder


@pytest.mark.usefixtures("fresh_fonts")
def test_characters_without_a_picture_are_found_and_told(client_log: pytest.LogCaptureFixture) -> None:
    choose_fonts(["abc", "餐桌"], 17)
    for told in ("MLCLS_FONT", "fonts-noto-cjk", "桌餐"):
        assert told in client_log.text


def test_a_font_of_the_system_is_found_by_what_it_has(fresh_fonts: Path) -> None:
    # The one font that is there on every machine, as a file.
    (fresh_fonts / "Some-Regular.ttf").write_bytes(load_font("", 20).font_bytes)
    (fresh_fonts / "Broken-Sans-Regular.ttf").write_bytes(b"no font")
    assert fonts._fonts_for(("a©", "餐")) == (str(fresh_fonts / "Some-Regular.ttf"),)


def test_a_text_is_in_the_first_font_that_has_all_of_it_or_in_several(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = load_font("", 20), load_font("", 26)
    has = {one: "abc ", other: "xyz a"}
    monkeypatch.setattr(fonts, "_has", lambda font, character: character in has[font])
    stack = Fonts([one, other], 20)
    for text, runs in {
        "abc": [(one, "abc")],
        "ax": [(other, "ax")],
        "bx": [(one, "b"), (other, "x")],
        "b\u0301 xb?": [(one, "b\u0301 "), (other, "x"), (one, "b?")],
    }.items():
        placed = stack._runs(text)
        assert [(font, run) for _, font, run in placed] == runs
        ends = [x + font.getlength(run) for x, font, run in placed]
        assert [x for x, _, _ in placed] == [0, *ends[:-1]], "one behind the other"
        assert stack.draw(text, (0, 0, 0)).width == stack.width(text) >= ends[-1]
    assert stack.missing(["abc", "xyz", "abx?"]) == "?"


@pytest.mark.parametrize("name", ["餐桌", "собака", "طاولة الطعام", "हिन्दी"])
def test_any_script_can_be_drawn_with_the_fonts_that_are_there(name: str) -> None:
    image = photo(480, 640)
    check_panel(draw_labels(image, [name, "cat"], [0.9, 0.8]), 480)
