"""Texts of others in a terminal, in JSON, in CSV and in file names: the client's part and the library's."""

from __future__ import annotations

import csv
import io
import json
import re
import time
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

import mlcls_client.base.text as of_client
from mlcls import cli
from mlcls.base import text as escaping
from mlcls.base.documents import change
from mlcls.errors import SpecError
from mlcls.model.catalog import official_spec
from mlcls_client import InputError, MultiLabelResult
from mlcls_client.cli.output import CsvWriter, JsonLinesWriter, ResultSaver, TableWriter, complain
from mlcls_client.inputs.fetch import url_file_name
from mlcls_client.pictures.drawing import draw_labels, draw_names
from mlcls_client.transport.contract import Answer

# Bytes and marks that a terminal obeys: colors, the window's title, C1's one-byte CSI, a turned text, new lines.
OBEYED = ("\x1b[2J", "\x1b]0;title\x07", "\x9b31m", "\x7f", "\r", "\n", "\u202egnp.exe", "\u2028", "\u2066", "\0", "\b")
HOSTILE = tuple(f"dog{text}cat" for text in OBEYED)
# What must stay as it is.
HARMLESS = ("собака", "犬", "a b", "naïve", "🐕", 'a "quoted" label', "\\x1b", "שלום", "<b>&", "../../etc", "100%")

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def make_result(*labels: str, input_path: str = "photo.png", content: bytes = b"") -> MultiLabelResult:
    answer = Answer("OK", tuple(range(len(labels))), (0.5,) * len(labels), labels)
    return MultiLabelResult(answer, input_path=input_path, encoded_image=content)


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_harmless_stays(text: str) -> None:
    for visible in (escaping.visible, of_client.visible, of_client.visible_json):
        assert visible(text) == text
    assert escaping.csv_cell(text) == of_client.csv_cell(text) == text
    assert not escaping.has_control(text)


@pytest.mark.parametrize("text", HOSTILE)
def test_what_is_obeyed_is_escaped(text: str) -> None:
    for shown in (escaping.visible(text, keep=""), of_client.visible(text)):
        assert not CONTROL.search(shown)
        assert shown.encode("ascii").decode("unicode_escape") == text, "it can be told what it was"
    written = json.dumps({"a": text}, ensure_ascii=False, indent=2)
    assert json.loads(of_client.visible_json(written)) == {"a": text}
    assert set(CONTROL.findall(of_client.visible_json(written))) <= {"\n"}
    assert escaping.has_control(text)


def test_the_two_are_alike() -> None:
    for number in [*range(0xD800), *range(0xE000, 0x11000)]:
        assert escaping.visible(chr(number), "") == of_client.visible(chr(number)), hex(number)


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", " =1", "|calc", "=cmd|' /C calc'!A0", "=1"])
def test_formulas(text: str) -> None:
    for cell in (escaping.csv_cell, of_client.csv_cell):
        assert str(cell(text)).startswith("'")
        assert cell(f"a{text}".replace("\t", "")) == f"a{text}".replace("\t", "")
        assert cell(-1.5) == -1.5
        assert cell(None) is None


# --- what the client prints and writes


@pytest.mark.parametrize("text", HOSTILE)
def test_the_client_prints_nothing_that_is_obeyed(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    result = make_result(text, input_path=f"{text}.png")
    table, columns = TableWriter(), TableWriter()
    columns._console = Console(width=80, color_system=None)
    for writer in (table, columns, JsonLinesWriter(), CsvWriter()):
        for line in writer.lines(result):
            for part in line.split("\n"):
                assert not CONTROL.search(part)
    assert json.loads(next(JsonLinesWriter().lines(result)))["label_names"] == [text], "JSON says what it was"
    result.print()
    result.print(format_json=True)
    complain(InputError(f"cannot read {text}"))
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 1
    assert set(CONTROL.findall(captured.out + captured.err)) <= {"\n"}


def test_csv_of_the_client_has_no_formulas() -> None:
    lines = [*CsvWriter().lines(make_result("=HYPERLINK(1)", 'a,"b"', input_path="-x.png"))]
    rows = list(csv.reader(io.StringIO("\n".join(lines))))
    assert [row[3] for row in rows[1:]] == ["'=HYPERLINK(1)", 'a,"b"']
    assert rows[1][0] == "'-x.png"


@pytest.mark.parametrize(
    "url",
    [
        "http://x/..%2f..%2fetc%2fpasswd",
        "http://x/a%0ab%1b[31m.jpg",
        "http://x/%00.jpg",
        f"http://x/{'a' * 5000}.jpg",
        f"http://x/{'%E7%8A%AC' * 500}.jpg",
        "http://x/-rf.jpg",
        "http://x/C:%5Cwindows%5Cx.png",
        "http://x/a%E2%80%AEgnp.jpg",
        "http://x/....",
        "http://x/a." + "b" * 4000,
        "http://x/%ff%fe.png",
    ],
)
def test_what_a_url_makes_of_a_file_name(tmp_path: Path, url: str) -> None:
    name = url_file_name(url)
    assert "/" not in name and "\\" not in name and not CONTROL.search(name) and name not in ("", ".", "..")
    assert not name.startswith("-")
    content = io.BytesIO()
    Image.new("RGB", (8, 8)).save(content, "png")
    folder = tmp_path / "output"
    for kind in ("img", "json"):
        path = ResultSaver(folder, kind).save(make_result("../../label", input_path=url, content=content.getvalue()))
        assert path.resolve().parent == folder.resolve()
        assert path.is_file()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["output"]


def test_hostile_labels_are_drawn() -> None:
    photo = Image.new("RGB", (320, 240))
    start_s = time.monotonic()
    for picture in (
        draw_labels(photo, [*HOSTILE, "x" * 1_000_000], [0.5] * (len(HOSTILE) + 1)),
        draw_names(photo, HOSTILE),
    ):
        assert picture.width == 320
        assert picture.height < 5000
    assert time.monotonic() - start_s < 60, "the time grows with the square of a label's length"


# --- what the library takes and prints


@pytest.mark.parametrize("text", HOSTILE)
def test_a_model_with_such_a_label_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="expected different labels, none empty, without control") as caught:
        change(official_spec("ResNet50_ML"), SpecError, labels=[text], thresholds=[0.5])
    assert not CONTROL.search(str(caught.value))


def test_errors_of_the_command_are_shown_and_not_obeyed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["import", "no\x1b[2Jmodel\u202e"]) == 1
    error = capsys.readouterr().err
    assert "no\\x1b[2Jmodel\\u202e" in error
    assert set(CONTROL.findall(error)) == {"\n"}
