"""`make bench` on a small served model with the real perf_analyzer: measured once, and continued where it ended."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.speed import matrix
from benchmarks.speed.perf_analyzer import PerfAnalyzer, PerfAnalyzerError
from benchmarks.speed.results import RESULTS_FILE, STEPS, TABLE_FILE
from support.served_models import SmallModels

pytestmark = pytest.mark.slow

MODEL = "small_with_sigmoid"


@pytest.fixture(autouse=True)
def _installed() -> None:
    try:
        PerfAnalyzer.find()
    except PerfAnalyzerError as error:
        pytest.skip(str(error))


def test_loads_are_measured_once_and_others_added(small_models: SmallModels, tmp_path: Path) -> None:
    options = ["--repository", str(small_models.repository), "--models", MODEL, "--output", str(tmp_path)]
    options += ["--concurrency", "2", "--seconds", "0.5", "--windows", "3"]

    def run(*more: str) -> dict[tuple[str, int], dict[str, Any]]:
        assert matrix.main([*options, *more]) == 0
        results = json.loads((tmp_path / RESULTS_FILE).read_text(encoding="utf-8"))["results"]
        return {(result["protocol"], result["batch_size"]): result for result in results}

    first = run("--batch", "4")
    assert list(first) == [("grpc", 4), ("http", 4)]
    for result in first.values():
        assert result["status"] == "measured"
        assert result["requests"] > 0
        assert 0 < result["p50_ms"] <= result["p95_ms"] <= result["p99_ms"]
        assert all(result[f"{step}_images_per_execution"] >= 4 for step in STEPS), "requests are not split"
        assert result["images"] >= 4 * result["requests"], "the server counts each image of a request"
        assert all(result[f"{name}_core_ms_per_image"] > 0 for name in (*STEPS, "tritonserver"))
    again = run("--batch", "1", "4", "--protocols", "grpc")
    assert {key: again[key] for key in first} == first, "what was measured is not measured again"
    assert set(again) == {*first, ("grpc", 1)}
    with (tmp_path / TABLE_FILE).open(newline="", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 3
    assert MODEL in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_a_model_that_is_not_there_is_told(small_models: SmallModels, tmp_path: Path, capsys: Any) -> None:
    options = ["--repository", str(small_models.repository), "--models", "none", "--output", str(tmp_path)]
    assert matrix.main(options) == 1
    assert "none" in capsys.readouterr().err
