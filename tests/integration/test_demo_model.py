"""The demo model: how it is made, in small, and that the one in the repository is what its figures say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from demo.dataset import SETS, write_test_images
from mlcls.engines.runners import DecodingRunner, OnnxRuntimeRunner
from mlcls.evaluation.evaluate import evaluate
from mlcls.releases.importing import import_model
from mlcls.repository.models import Repository
from mlcls.repository.names import ONNX_FILE
from support.processes import ROOT

pytestmark = pytest.mark.slow

DEMO_MODEL = ROOT / "demo_model"


def test_committed_model_reaches_its_figures(tmp_path: Path) -> None:
    figures = json.loads((DEMO_MODEL / "figures.json").read_text())
    recipe = figures["recipe"]
    spec = import_model(str(DEMO_MODEL / "inference"), Repository(tmp_path / "repository"), name="demo").spec
    assert list(spec.labels) == figures["labels"]
    test = write_test_images(
        tmp_path / "test", recipe["test_scenes"], recipe["test_crops"], spec.transform, recipe["seed"]
    )
    onnx = Repository(tmp_path / "repository").active("demo").engine_folder / ONNX_FILE
    runner = DecodingRunner(OnnxRuntimeRunner(onnx, spec), spec)
    for name, file in SETS.items():
        expected = figures["sets"][name]
        measured = evaluate(runner, test / file, spec.thresholds).metrics.overall
        assert measured["MultiLabelMAP"] == pytest.approx(expected["runners"]["onnx"]["MultiLabelMAP"], abs=2e-3)
        assert expected["highest_difference"] < 1e-4
        runners = expected["runners"]
        assert set(runners) == {"paddle", "onnx", "served"}
        for metric, value in runners["paddle"].items():
            assert value == pytest.approx(runners["served"][metric], abs=1e-4)
            assert value == pytest.approx(runners["onnx"][metric], abs=1e-4)


def test_making_the_model_in_small_and_again(tmp_path: Path) -> None:
    command: list[str | Path] = [
        sys.executable, "-m", "demo", "--work", tmp_path / "work", "--output",
        tmp_path / "demo", "--train-scenes", "192", "--val-scenes", "64", "--test-scenes", "64", "--test-crops", "16",
        "--epochs", "1", "--side", "32",
    ]  # fmt: skip
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert "served" in process.stdout
    figures = json.loads((tmp_path / "demo" / "figures.json").read_text())
    assert set(figures["sets"]) == set(SETS)
    for measured in figures["sets"].values():
        assert set(measured["runners"]) == {"paddle", "onnx", "served"}
        assert measured["highest_difference"] < 1e-4
    assert (tmp_path / "demo" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "demo" / "inference" / "inference.yml").is_file()
    weights = tmp_path / "work" / "run" / "best_model" / "best_model.pdparams"
    before = weights.stat().st_mtime_ns
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert weights.stat().st_mtime_ns == before, "what is trained is not trained again"
