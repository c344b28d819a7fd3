"""`mlcls paddlex` and `scripts/main.py`: what is printed, written and returned."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mlcls import cli
from support.dataset_samples import write_dataset
from support.processes import ROOT

CONFIG = ROOT / "configs/PP-LCNet_x1_0_ML.yaml"


def run(root: Path, *overrides: str) -> int:
    options = [f"Global.dataset_dir={root}", f"Global.output={root.parent / 'output'}", *overrides]
    return cli.main(["paddlex", "-c", str(CONFIG), *(text for option in options for text in ("-o", option))])


def result_of(root: Path, mode: str = "check_dataset") -> dict[str, object]:
    document: dict[str, object] = json.loads((root.parent / f"output/{mode}_result.json").read_text(encoding="utf-8"))
    return document


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "x")


def test_good_dataset(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(root) == 0
    assert capsys.readouterr().out == "Check dataset passed !\n"
    assert list(result_of(root)) == [
        "done_flag", "check_pass", "attributes", "analysis", "dataset_path", "show_type", "dataset_type",
    ]  # fmt: skip
    assert (result_of(root)["done_flag"], result_of(root)["check_pass"]) == (True, True)


def test_warnings(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are in the result file too, after PaddleX's fields."""
    (root / "val.txt").write_bytes((root / "val.txt").read_bytes().replace(b"\n", b"\r\n"))
    assert run(root) == 0
    assert capsys.readouterr().err == (
        "warning: val.txt: lines end with CRLF (Windows); they are read as if they ended with LF\n"
    )
    assert result_of(root)["problems"] == [
        {
            "severity": "warning",
            "kind": "crlf",
            "file": "val.txt",
            "message": "lines end with CRLF (Windows); they are read as if they ended with LF",
        }
    ]


def test_bad_dataset(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Twenty problems are printed, the result file has all."""
    with (root / "train.txt").open("a") as file:
        file.writelines(f"images/none{number}.png\t0,0,0,0\n" for number in range(30))
    assert run(root) == 1
    out, err = capsys.readouterr()
    result_file = root.parent / "output/check_dataset_result.json"
    lines = err.splitlines()
    assert out == ""
    assert lines[0] == "error: train.txt:7: images/none0.png: expected an image file, but it does not exist"
    assert len(lines) == 22
    assert lines[20] == f"... and 10 more, all in {result_file}"
    text = f"{root}: expected a dataset without errors, got 30; see {result_file}."
    assert lines[21] == f"mlcls paddlex: {text}"
    result = result_of(root)
    problems = result.pop("problems")
    assert result == {"done_flag": False, "err_type": "DatasetError", "err_msg": text, "check_pass": False}
    assert isinstance(problems, list)
    assert len(problems) == 30
    assert problems[0] == {
        "severity": "error",
        "kind": "missing-image",
        "file": "train.txt",
        "line": 7,
        "message": "images/none0.png: expected an image file, but it does not exist",
    }


def test_split(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    percents = ["CheckDataset.split.train_percent=50", "CheckDataset.split.val_percent=50"]
    assert run(root, "CheckDataset.split.enable=True", *percents) == 0
    assert capsys.readouterr().out == (
        "Split dataset successfully !\ntrain.txt was kept as train.txt.bak\nval.txt was kept as val.txt.bak\n"
        "Check dataset passed !\n"
    )


def test_bad_dataset_is_not_split(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "images/000.png").unlink()
    percents = ["CheckDataset.split.train_percent=50", "CheckDataset.split.val_percent=50"]
    assert run(root, "CheckDataset.split.enable=True", *percents) == 1
    assert "expected a dataset without errors, got 1; it was left as it is; see" in capsys.readouterr().err


def test_no_dataset(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(root.parent / "none/x", "Global.output=" + str(root.parent / "output")) == 1
    expected = "expected the folder of a dataset, got a path that does not exist; see Global.dataset_dir."
    text = f"{root.parent / 'none/x'}: {expected}"
    assert capsys.readouterr().err == f"mlcls paddlex: {text}\n"
    assert result_of(root) == {"done_flag": False, "err_type": "DatasetError", "err_msg": text}


def test_unknown_mode(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(root, "Global.mode=check") == 1
    modes = "check_dataset, train, evaluate, export, predict"
    assert capsys.readouterr().err == f"mlcls paddlex: {CONFIG}: Global.mode: expected one of {modes}, got 'check'.\n"
    assert not (root.parent / "output").exists()


def test_script(root: Path) -> None:
    """The tutorial's command, from the folder that the dataset is in."""
    options = ["-o", "Global.mode=check_dataset", "-o", "Global.dataset_dir=./x"]
    command = [sys.executable, str(ROOT / "scripts/main.py"), "-c", str(CONFIG), *options]
    done = subprocess.run(command, cwd=root.parent, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "Check dataset passed !\n"), done.stderr
    assert result_of(root)["dataset_path"] == "x"
