"""The matrix: its cells, what is kept on the disk, and the report."""

from __future__ import annotations

import base64
import csv
import dataclasses
import json
import re
import xml.etree.ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest

from benchmarks.speed.matrix_cells import RESULTS_FILE, TABLE_FILE, Cell, CellResult, ResultFolder, make_cells, steps_of
from benchmarks.speed.matrix_report import find_fastest, format_report
from benchmarks.speed.perf_analyzer import PerfFigures, StepTimes
from benchmarks.usage import ServedCost, count_images
from mlcls.errors import MlclsError

LCNET = "PP-LCNet_x1_0_ML"
CONDITIONS = {"processor": "A & B <fast>", "commit": "1234567"}
STEPS = {
    f"{LCNET}_engine": StepTimes(2.0, 3.0, 0.1, 20.0, 0.2),
    f"{LCNET}_postprocess": StepTimes(1.0, 0.5, 0.1, 1.0, 0.1),
    f"{LCNET}_preprocess": StepTimes(1.5, 1.0, 0.1, 6.0, 0.3),
}
COST = ServedCost(400, {"preprocess": 5.0, "engine": 30.0, "tritonserver": 1.5}, 512.3, 120)


def make_result(images_per_s: float, cell: Cell | None = None, stable: bool = True) -> CellResult:
    cell = cell or Cell(LCNET, "embedded", "grpc", 1, 8)
    steps = {name.replace(LCNET, cell.model): times for name, times in STEPS.items()}
    figures = PerfFigures(images_per_s, 100, 40.0, 38.0, 50.0, 55.0, 61.0, steps, stable)
    return CellResult(cell, "measured", "2026-11-28T06:14:20+00:00", figures, COST)


def test_cells_are_all_loads_light_ones_first_and_protocols_beside_each_other() -> None:
    cells = list(make_cells("m", "int8", ("http", "grpc"), (8, 1), (4, 1, 4)))
    assert cells == [
        Cell("m", "int8", protocol, batch, concurrency)
        for batch in (1, 8)
        for concurrency in (1, 4)
        for protocol in ("grpc", "http")
    ]


def test_results_are_kept_and_read_again(tmp_path: Path) -> None:
    folder = ResultFolder(tmp_path / "new", CONDITIONS)
    results = [
        make_result(60.0),
        CellResult(Cell("other", "int8", "http", 8, 16), "left out", "now", note="an answer would take about 85 s"),
    ]
    for result in results:
        folder.add(result)
        again = ResultFolder(tmp_path / "new", CONDITIONS)
        assert again.results == folder.results
    assert list(again.results.values()) == results
    with (tmp_path / "new" / TABLE_FILE).open(newline="") as file:
        measured, left_out = csv.DictReader(file)
    assert (measured["model"], measured["concurrency"], measured["images_per_s"]) == (LCNET, "8", "60")
    assert (measured["stable"], measured["p99_ms"]) == ("true", "61")
    assert (measured["engine_queue_ms"], measured["preprocess_infer_ms"]) == ("3", "6")
    assert (measured["engine_core_ms_per_image"], measured["core_ms_per_image"]) == ("30", "36.5")
    assert (left_out["status"], left_out["images_per_s"], left_out["note"]) == ("left out", "", results[1].note)


def test_results_of_other_conditions_are_not_mixed_in(tmp_path: Path) -> None:
    ResultFolder(tmp_path, CONDITIONS).add(make_result(60.0))
    with pytest.raises(MlclsError, match=r"commit '1234567', now '89abcde'; .*--restart"):
        ResultFolder(tmp_path, {**CONDITIONS, "commit": "89abcde"})
    assert ResultFolder(tmp_path, {**CONDITIONS, "commit": "89abcde"}, restart=True).results == {}


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schema_version": 2}'])
def test_a_file_that_is_not_ours_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / RESULTS_FILE).write_text(content)
    with pytest.raises(MlclsError, match=r"expected results of this benchmark"):
        ResultFolder(tmp_path, CONDITIONS)


def test_an_unknown_key_is_an_error(tmp_path: Path) -> None:
    ResultFolder(tmp_path, CONDITIONS).add(make_result(60.0))
    document = json.loads((tmp_path / RESULTS_FILE).read_text())
    document["results"][0]["figures"]["p999_ms"] = 1
    (tmp_path / RESULTS_FILE).write_text(json.dumps(document))
    with pytest.raises(MlclsError, match="p999_ms"):
        ResultFolder(tmp_path, CONDITIONS)


def test_steps_are_in_the_order_of_an_image() -> None:
    assert list(steps_of(make_result(60.0))) == ["preprocess", "engine", "postprocess"]


def test_the_fastest_load_of_each_model_is_found() -> None:
    cell = Cell(LCNET, "embedded", "grpc", 1, 8)
    slow, fast = make_result(50.0, cell), make_result(60.0, dataclasses.replace(cell, concurrency=16))
    int8 = make_result(90.0, dataclasses.replace(cell, target="int8"))
    nothing = CellResult(Cell("other", "embedded", "grpc", 1, 1), "failed", "now", note="no answer")
    results = [slow, fast, int8, nothing]
    assert find_fastest(results) == {LCNET: int8}
    assert find_fastest(results, "embedded") == {LCNET: fast}


def test_images_are_counted_for_the_models_asked_for_and_all_their_versions() -> None:
    metrics = (
        "# HELP nv_inference_count Number of inferences performed\n"
        'nv_inference_count{model="animals",version="1"} 12\n'
        'nv_inference_count{model="animals",version="2"} 3\n'
        'nv_inference_count{model="animals_engine",version="1"} 15\n'
        'nv_inference_count{model="plants",version="1"} 100\n'
        'nv_inference_request_success{model="animals",version="1"} 7\n'
    )
    assert count_images(metrics, ("animals",)) == 15
    assert count_images(metrics, ("animals", "plants")) == 115


class _Page(HTMLParser):
    """What a browser would load and show."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_report_has_everything_in_one_file(tmp_path: Path) -> None:
    folder = ResultFolder(tmp_path, CONDITIONS)
    cell = Cell(LCNET, "embedded", "grpc", 1, 1)
    folder.add(make_result(30.0, cell))
    folder.add(make_result(60.0, dataclasses.replace(cell, concurrency=8), stable=False))
    folder.add(make_result(200.0, Cell("<own> & model", "embedded", "http", 1, 8)))
    folder.add(CellResult(dataclasses.replace(cell, batch_size=8), "left out", "now", note="an answer > 10 s"))
    text = format_report(folder, "python -m benchmarks.speed.matrix --seconds 2 '<x>'")
    page = _Page(text)
    shown = " ".join(page.words)
    assert page.open == []
    for expected in (
        "A & B <fast>",
        "1234567",
        "python -m benchmarks.speed.matrix --seconds 2 '<x>'",
        "<own> & model",
        "60.0 *",
        "left out: an answer > 10 s",
        "official weights",
        "cpu: Triton's onnxruntime backend, in the container",
        "gpu: Triton's tensorrt backend, in the container, on a GPU",
    ):
        assert expected in shown
    assert "<own>" not in text
    pictures = [base64.b64decode(source.partition(";base64,")[2]).decode() for source in page.sources]
    assert len(pictures) == 5, "the plane of the official model, and two of each model"
    for picture in pictures:
        xml.etree.ElementTree.fromstring(picture)
        assert not re.search(r'href="(?!#)', picture), "nothing is loaded from elsewhere"


def test_a_report_of_nothing_says_so(tmp_path: Path) -> None:
    assert "Nothing was measured." in format_report(ResultFolder(tmp_path, CONDITIONS), "x")
