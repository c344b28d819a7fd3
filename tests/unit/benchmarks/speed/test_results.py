"""The loads of `make bench`, what is kept on the disk, and the report."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import pytest

from benchmarks.speed.perf_analyzer import PerfFigures, StepTimes
from benchmarks.speed.results import (
    RESULTS_FILE,
    TABLE_FILE,
    Cell,
    Result,
    ResultFolder,
    format_report,
    make_cells,
    make_result,
)
from benchmarks.usage import ServedCost
from mlcls.errors import MlclsError

CONDITIONS = {"processor": "fast", "commit": "1234567"}
CELL = Cell("animals", "embedded", "grpc", 1, 8)
LEFT_OUT = Cell("other", "int8", "http", 8, 16)
FAILED = dataclasses.replace(CELL, concurrency=1)
COST = ServedCost(400, {"preprocess": 5.0, "engine": 30.0, "tritonserver": 1.5}, 512.3)


def measured(images_per_s: float, cell: Cell = CELL, stable: bool = True) -> Result:
    steps = {"animals_engine": StepTimes(2.0, 3.0, 20.3), "animals_preprocess": StepTimes(1.5, 1.0, 6.4)}
    figures = PerfFigures(images_per_s, 100, 40.0, 38.0, 55.0, 61.0, steps, stable)
    return make_result(cell, "measured", "", figures, COST)


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
    results = {
        CELL: measured(60.0),
        LEFT_OUT: make_result(LEFT_OUT, "left out", "an answer would take about 85 s"),
        FAILED: make_result(FAILED, "failed", "no answer"),
    }
    for cell, result in results.items():
        folder.add(cell, result)
    again = ResultFolder(tmp_path / "new", CONDITIONS)
    assert again.results == folder.results == results
    assert [folder.is_done(cell) for cell in results] == [True, True, False]
    assert not folder.is_done(dataclasses.replace(CELL, batch_size=2))
    with (tmp_path / "new" / TABLE_FILE).open(newline="") as file:
        first, second, _ = csv.DictReader(file)
    assert (first["model"], first["concurrency"], first["images_per_s"]) == ("animals", "8", "60.0")
    assert (first["stable"], first["p99_ms"], first["engine_queue_ms"]) == ("True", "61.0", "3.0")
    assert (first["engine_core_ms_per_image"], first["core_ms_per_image"]) == ("30.0", "36.5")
    assert (second["status"], second["images_per_s"]) == ("left out", "")


def test_results_of_other_conditions_are_not_mixed_in(tmp_path: Path) -> None:
    ResultFolder(tmp_path, CONDITIONS).add(CELL, measured(60.0))
    with pytest.raises(MlclsError, match=r"commit '1234567', now '89abcde'; .*--restart"):
        ResultFolder(tmp_path, {**CONDITIONS, "commit": "89abcde"})
    assert ResultFolder(tmp_path, {**CONDITIONS, "commit": "89abcde"}, restart=True).results == {}


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"schema_version": 1}', '{"schema_version": 2, "conditions": {}, "results": [{}]}']
)
def test_a_file_that_is_not_ours_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / RESULTS_FILE).write_text(content)
    with pytest.raises(MlclsError, match=r"expected results of this benchmark"):
        ResultFolder(tmp_path, CONDITIONS)


def test_the_report(tmp_path: Path) -> None:
    folder = ResultFolder(tmp_path, CONDITIONS)
    lone = dataclasses.replace(CELL, concurrency=1)
    for cell, result in {lone: measured(30.0, lone), CELL: measured(60.0, stable=False)}.items():
        folder.add(cell, result)
    folder.add(LEFT_OUT, make_result(LEFT_OUT, "left out", "an answer would take 10 s"))
    text = format_report(folder, "python -m benchmarks.speed.matrix --seconds 2")
    assert "`python -m benchmarks.speed.matrix --seconds 2`\n\n- processor: fast\n- commit: 1234567" in text
    assert "| animals | embedded | grpc, 8 x 1 | 60.0 * | 38.0 | 61.0 | 36.5 | 512.3 | 38.0 |" in text
    assert (
        "| embedded | grpc | 1 | 1 | 30.0 | 38.0 | 55.0 | 61.0 | 1.0 | 6.4 | 3.0 | 20.3 | - | - | 2.0 | 36.5 |" in text
    )
    assert "| int8 | http | 16 | 8 | left out: an answer would take 10 s |" in text
    assert "- gpu: Triton's tensorrt backend, in the container, on a GPU" in text
    assert json.loads((tmp_path / RESULTS_FILE).read_text())["results"][1]["stable"] is False
