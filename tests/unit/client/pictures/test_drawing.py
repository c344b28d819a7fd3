"""Annotated pictures: the photo untouched, every label in the panel, nothing cut off, at any size."""

import io
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlcls_client import InputError
from mlcls_client.pictures.caption import Box, CaptionLayout, PlacedText, lay_out_caption, lay_out_names, wrap_text
from mlcls_client.pictures.drawing import (
    PANEL_COLOR,
    SURROUND_COLOR,
    draw_labels,
    draw_names,
    font_size,
    open_image,
    picture_width,
)
from mlcls_client.pictures.fonts import FontFace, FontStack, _font_files, _fonts_with, choose_fonts, load_font

NAMES = ["banana", "orange", "apple", "bowl", "dining table", "knife", "bottle"]
SCORES = [0.99972, 0.99601, 0.99277, 0.65718, 0.56914, 0.56436, 0.52865]
LONG_NAMES = ["a name that goes on " * 6, "unbroken" * 12, "x", "jäger"]
# (height, width): thumbnail, photo, portrait, large, panorama, strip, tower
SIZES = [(48, 64), (480, 640), (640, 480), (4000, 6000), (800, 6000), (30, 3000), (4000, 200), (1, 1)]


def photo(height: int, width: int) -> Image.Image:
    ramp = np.linspace(0, 200, 64)
    channels = np.stack([*np.meshgrid(ramp, ramp), np.full((64, 64), 100.0)], axis=2)
    return Image.fromarray(channels.astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST)


def plain_font(size: int) -> FontStack:
    return FontStack([FontFace(load_font(None, size))], size)


def lay_out(height: int, width: int, names: Sequence[str], scores: Sequence[float]) -> CaptionLayout:
    return lay_out_caption(width, names, scores, plain_font(font_size(height, width)))


def texts_of(layout: CaptionLayout) -> list[PlacedText]:
    return [*layout.note, *(text for row in layout.rows for text in (*row.name_lines, row.score_text))]


def overlap(first: Box, second: Box) -> bool:
    beside = first.right <= second.left or second.right <= first.left
    above = first.bottom <= second.top or second.bottom <= first.top
    return not beside and not above


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_photo_stays_as_it_is_and_a_panel_comes_below(height: int, width: int) -> None:
    image = photo(height, width)
    picture = draw_labels(image, NAMES, SCORES)
    assert picture.mode == "RGB"
    assert picture.width == picture_width(height, width) >= max(width, 320)
    left = (picture.width - width) // 2
    assert np.array_equal(np.asarray(picture.crop((left, 0, left + width, height))), np.asarray(image))
    panel = np.asarray(picture.crop((0, height, picture.width, picture.height)))
    assert (panel != PANEL_COLOR).any(axis=2).mean() > 0.01
    # Nothing reaches the edge, so nothing is cut by it.
    for edge in (panel[:3], panel[-3:], panel[:, :3], panel[:, -3:]):
        assert (edge == PANEL_COLOR).all()


@pytest.mark.parametrize(("height", "width"), [(height, picture_width(height, width)) for height, width in SIZES])
@pytest.mark.parametrize("names", [NAMES, LONG_NAMES, ["one"], [f"label {i}" for i in range(80)], []])
def test_every_text_and_bar_has_a_place_of_its_own(height: int, width: int, names: list[str]) -> None:
    scores = [1 - index / 100 for index in range(len(names))]
    font = plain_font(font_size(height, width))
    layout = lay_out(height, width, names, scores)
    texts = texts_of(layout)
    for text in texts:
        left, top, right, bottom = font.getbbox(text.text, anchor="ls")
        assert text.box.left <= text.x + left
        assert text.x + right <= text.box.right
        assert text.box.top <= text.y + top
        assert text.y + bottom <= text.box.bottom
    boxes = [*(text.box for text in texts), *(row.track for row in layout.rows)]
    for box in boxes:
        assert box.left >= 3
        assert box.top >= 3
        assert box.right <= layout.width - 3
        assert box.bottom <= layout.height - 3
        assert box.left < box.right
        assert box.top < box.bottom
    assert not [pair for pair in combinations(boxes, 2) if overlap(*pair)]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_text_is_readable_when_the_picture_fills_a_screen(height: int, width: int) -> None:
    shown_width = picture_width(height, width)
    size = font_size(height, shown_width)
    assert size >= 13
    assert size * min(1.0, 1500 / shown_width, 1500 / height) >= 13


def test_all_labels_and_scores_are_written_in_order() -> None:
    layout = lay_out(480, 640, NAMES, SCORES)
    assert [row.name_lines[0].text for row in layout.rows] == NAMES
    assert [row.score_text.text for row in layout.rows] == [f"{score:.3f}" for score in SCORES]
    assert len({row.track.left for row in layout.rows}) == 2, "two columns at this width"
    assert len({row.track.left for row in lay_out(800, 6000, NAMES, SCORES).rows}) == 4


def test_bars_are_as_long_as_their_scores() -> None:
    image = photo(480, 640)
    scores = [1.0, 0.5, 0.0]
    layout = lay_out(480, 640, ["a", "b", "c"], scores)
    panel = np.asarray(draw_labels(image, ["a", "b", "c"], scores).crop((0, 480, 640, 480 + layout.height)))
    for row in layout.rows:
        middle = panel[(row.track.top + row.track.bottom) // 2, row.track.left : row.track.right]
        filled = (middle[:, 0] < 100).mean()
        assert filled == pytest.approx(row.score, abs=0.02)


def test_long_names_go_on_in_further_lines_without_loss() -> None:
    layout = lay_out(48, 320, LONG_NAMES[:2], [0.9, 0.8])
    assert " ".join(line.text for line in layout.rows[0].name_lines) == LONG_NAMES[0].strip()
    assert "".join(line.text for line in layout.rows[1].name_lines) == LONG_NAMES[1]


def test_only_a_name_beyond_six_lines_ends_in_an_ellipsis() -> None:
    font = plain_font(16)
    lines = wrap_text("word " * 200, 200, font)
    assert len(lines) == 6
    assert lines[-1].endswith("…")
    assert all(font.getlength(line) <= 200 for line in lines)
    assert wrap_text("word", 200, font) == ["word"]


def test_no_label_is_said_in_words() -> None:
    layout = lay_out(480, 640, [], [])
    assert [text.text for text in layout.note] == ["no label above the threshold"]
    panel = np.asarray(draw_labels(photo(480, 640), [], []))[480:]
    assert (panel != PANEL_COLOR).any()


def test_a_narrow_photo_stands_in_the_middle() -> None:
    picture = np.asarray(draw_labels(photo(480, 100), NAMES, SCORES))
    assert (picture[:480, :110] == SURROUND_COLOR).all()
    assert (picture[:480, 210:] == SURROUND_COLOR).all()


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


def test_one_finite_score_per_label() -> None:
    for scores in ([], [float("nan")]):
        with pytest.raises(InputError, match="one finite score per label"):
            draw_labels(photo(10, 10), ["a"], scores)


def test_a_named_font_that_is_none_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="MLCLS_FONT"):
        draw_labels(photo(10, 10), ["a"], [0.5], font_path="no/such/font.ttf")
    monkeypatch.setenv("MLCLS_FONT", "no/such/font.ttf")
    with pytest.raises(InputError, match=r"no/such/font\.ttf"):
        draw_labels(photo(10, 10), ["a"], [0.5])


def test_characters_without_a_picture_are_found_and_told(
    monkeypatch: pytest.MonkeyPatch, client_log: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    assert plain_font(16).missing("abc 餐") == "餐"
    monkeypatch.setattr("mlcls_client.pictures.fonts._font_files", list)
    monkeypatch.setattr("mlcls_client.pictures.fonts._fonts_with", _fonts_with.__wrapped__)
    monkeypatch.delenv("MLCLS_FONT", raising=False)
    choose_fonts("餐桌", 17)
    assert "MLCLS_FONT" in client_log.text
    assert "fonts-noto-cjk" in client_log.text
    assert "桌餐" in client_log.text


class PartialFace(FontFace):
    """The built-in font, as if it had some characters only."""

    def __init__(self, characters: str, size: int, scale: float = 1.0) -> None:
        super().__init__(load_font(None, size), scale)
        self._characters = characters

    def has(self, character: str) -> bool:
        return character in self._characters


def test_other_fonts_stand_in_for_what_the_first_lacks() -> None:
    first, second, scaled = PartialFace("abc ", 20), PartialFace("xyz ", 26), PartialFace("m", 80, 0.25)
    fonts = FontStack([first, second, scaled], 20)
    assert fonts.getlength("abc abc") == first.length("abc abc")
    assert fonts.getlength("xyz") == second.length("xyz"), "a text that one font has all of is written in that font"
    assert fonts.getlength("axm") == first.length("a") + second.length("x") + scaled.length("m")
    assert fonts.missing("abxm?") == "?"
    assert scaled.length("m") == pytest.approx(PartialFace("m", 20).length("m"), abs=1)


@pytest.mark.parametrize("text", ["abc", "xyz", "axb m yc", "m", "aymbxc m"])
def test_the_ink_is_where_the_measures_say(text: str) -> None:
    fonts = FontStack([PartialFace("abc ", 20), PartialFace("xyz", 26), PartialFace("m", 80, 0.25)], 20)
    picture = Image.new("RGB", (300, 80), "white")
    fonts.write(picture, 10, 50, text, (0, 0, 0))
    ink = Image.eval(picture.convert("L"), lambda value: 255 - value).getbbox()
    assert ink is not None
    left, top, right, bottom = fonts.getbbox(text)
    assert ink[0] >= 10 + left - 1
    assert ink[1] >= 50 + top - 1
    assert ink[2] <= 10 + right + 1
    assert ink[3] <= 50 + bottom + 1
    assert ink[2] - ink[0] == pytest.approx(right - left, abs=3)
    assert ink[3] - ink[1] == pytest.approx(bottom - top, abs=3)


def test_pieces_of_a_text_that_runs_from_right_to_left_follow_one_another_so() -> None:
    hebrew, latin = PartialFace("אב ", 20), PartialFace("ab", 20)
    fonts = FontStack([hebrew, latin], 20)
    assert [piece for _, piece in fonts._pieces("אב ab")] == ["ab", "אב "]
    assert [piece for _, piece in fonts._pieces("ab אב")] == ["ab", " אב"]


def test_a_font_of_the_system_is_found_by_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "fonts" / "truetype"
    folder.mkdir(parents=True)
    # The one font that is there on every machine, as a file.
    (folder / "Some-Regular.ttf").write_bytes(load_font(None, 20).font_bytes)
    (folder / "Broken-Sans-Regular.ttf").write_bytes(b"no font")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_DIRS", str(tmp_path / "none"))
    monkeypatch.setattr("mlcls_client.pictures.fonts._font_files", _font_files.__wrapped__)
    monkeypatch.setattr("mlcls_client.pictures.fonts._fonts_with", _fonts_with.__wrapped__)
    assert _fonts_with.__wrapped__("©") == ((str(folder / "Some-Regular.ttf"), 0),)
    assert _fonts_with.__wrapped__("餐") == ()


@pytest.mark.parametrize("name", ["餐桌", "собака", "طاولة الطعام", "🍌 banana", "हिन्दी", "👩\u200d🌾"])
def test_any_script_can_be_drawn_with_the_fonts_that_are_there(name: str) -> None:
    image = photo(480, 640)
    picture = draw_labels(image, [name, "cat"], [0.9, 0.8])
    panel = np.asarray(picture.crop((0, 480, picture.width, picture.height)))
    for edge in (panel[:3], panel[-3:], panel[:, :3], panel[:, -3:]):
        assert (edge == PANEL_COLOR).all()


@pytest.mark.parametrize("names", [NAMES, LONG_NAMES, NAMES * 20, []])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_names_without_scores(height: int, width: int, names: list[str]) -> None:
    """All of them, in order, in the panel, none over another."""
    width = picture_width(height, width)
    layout = lay_out_names(width, names, plain_font(font_size(height, width)))
    texts = texts_of(layout)
    assert "".join(text.text.replace(" ", "") for text in texts) == "".join(names or ["no label"]).replace(" ", "")
    for text in texts:
        assert text.box.left >= 0 and text.box.right <= width and text.box.bottom <= layout.height
    assert not any(overlap(first.box, second.box) for first, second in combinations(texts, 2))


def test_picture_with_names() -> None:
    image = photo(480, 640)
    picture = draw_names(image, NAMES)
    assert np.array_equal(np.asarray(picture.crop((0, 0, 640, 480))), np.asarray(image))
    panel = np.asarray(picture.crop((0, 480, 640, picture.height)))
    assert (panel != PANEL_COLOR).any(axis=2).mean() > 0.01
    for edge in (panel[:3], panel[-3:], panel[:, :3], panel[:, -3:]):
        assert (edge == PANEL_COLOR).all()
