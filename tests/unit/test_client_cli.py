"""The `mlcls-client` command: what it prints where, and its exit codes."""

import argparse
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from mlcls_client.cli import add_predict_arguments, main, run_predict
from mlcls_client.table import LabelTable
from mlcls_client.testing import FakeServer

NAME = "PP-LCNet_x1_0_ML"


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    with FakeServer(NAME) as fake:
        yield fake


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    photos = tmp_path / "photos"
    (photos / "more").mkdir(parents=True)
    Image.new("RGB", (40, 30), (255, 204, 0)).save(photos / "img2.png")
    Image.new("RGB", (40, 30), (0, 0, 255)).save(photos / "img10.png")
    Image.new("RGB", (40, 30), (0, 0, 0)).save(photos / "more" / "img2.png")
    return photos


def unused_url() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def test_the_table_is_aligned(server: FakeServer, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", NAME, str(folder), "--url", server.url]) == 0
    captured = capsys.readouterr()
    width = len(f"{folder}/more/img2.png")
    assert captured.out.splitlines() == [
        f"{'image':{width}}  labels",
        f"{folder / 'img2.png'!s:{width}}  red 1.000, green 0.800",
        f"{folder / 'img10.png'!s:{width}}  blue 1.000",
        f"{folder / 'more/img2.png'!s:{width}}  (no label above the threshold)",
    ]
    assert captured.err == ""


def test_json_lines(server: FakeServer, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["predict", NAME, str(folder / "img2.png"), str(folder / "gone.png"), "--json"]
    assert main([*arguments, "--url", server.url, "--threshold", '{"default": 0.9}']) == 1
    captured = capsys.readouterr()
    good, failed = (json.loads(line) for line in captured.out.splitlines())
    assert good == {
        "input_path": str(folder / "img2.png"),
        "page_index": None,
        "class_ids": [0],
        "scores": [1.0],
        "label_names": ["red"],
    }
    assert "there is none" in failed["error"]
    assert server.requests[-1][1] == '{"default": 0.9}'


def test_a_bad_image_has_its_reason_on_standard_error(
    server: FakeServer, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "img3.png").write_bytes(b"junk")
    assert main(["predict", NAME, str(folder), "--url", server.url, "--batch-size", "4"]) == 1
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 5
    assert captured.out.count("(no result)") == 1
    assert captured.err.startswith("mlcls-client: the server has no result for ")
    assert "img3.png" in captured.err


def test_saved_pictures_never_replace_each_other(server: FakeServer, folder: Path, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    assert main(["predict", NAME, str(folder), "--url", server.url, "--save", str(saved)]) == 0
    assert sorted(path.name for path in saved.iterdir()) == ["img10_res.png", "img2_res.png", "img2_res_2.png"]
    with Image.open(saved / "img2_res.png") as picture:
        assert picture.height > 30


def test_a_folder_that_cannot_be_written_fails_the_images(
    server: FakeServer, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", NAME, str(folder), "--url", server.url, "--save", str(folder / "img2.png")]) == 1
    assert capsys.readouterr().err.count("cannot write") == 3


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["predict", NAME],
        ["predict", NAME, "a.png", "--threshold", "high"],
        ["predict", NAME, "a.png", "--threshold", '{"default": "0.5"}'],
        ["predict", NAME, "a.png", "--threshold", "null"],
        ["predict", NAME, "a.png", "--batch-size", "0"],
        ["predict", NAME, "a.png", "--timeout", "0"],
        ["predict", NAME, "a.png", "--protocol", "ftp"],
        ["predict", NAME, "a.png", "--url", "http://localhost:8000"],
    ],
)
def test_wrong_usage_is_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err


def test_a_threshold_that_the_server_refuses_is_2(
    server: FakeServer, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", NAME, str(folder), "--url", server.url, "--threshold", '{"person": 0.5}']) == 2
    assert "neither a number nor a dict with a default" in capsys.readouterr().err


def test_no_usable_server_is_3(server: FakeServer, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", NAME, str(folder), "--url", unused_url()]) == 3
    assert "Check the address" in capsys.readouterr().err
    assert main(["predict", "ResNet50_ML", str(folder), "--url", server.url]) == 3
    assert "no model 'ResNet50_ML'" in capsys.readouterr().err


def test_wait(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["wait", NAME, "--url", server.url]) == 0
    assert main(["wait", NAME, "--url", unused_url(), "--timeout", "0.3"]) == 3
    assert main(["wait", "ResNet50_ML", "--url", server.url, "--timeout", "0.3"]) == 3
    assert "the model is not loaded or not ready" in capsys.readouterr().err


def test_help_is_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "--help"]) == 0
    assert "exit codes:" in capsys.readouterr().out


def test_another_command_can_offer_the_same(
    server: FakeServer, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    add_predict_arguments(parser)
    assert run_predict(parser.parse_args([NAME, str(folder), "--url", server.url])) == 0
    assert "blue 1.000" in capsys.readouterr().out


def test_a_reader_that_leaves_is_no_traceback(server: FakeServer, folder: Path) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, "-m", "mlcls_client", "predict", NAME, str(folder), "--url", server.url]
    done = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write_end)
    assert (done.returncode, done.stderr) == (1, "")


def test_rows_fit_a_terminal() -> None:
    table = LabelTable(["a/very/long/path/of/a/photo.jpg", "餐.jpg"], 52)
    path = "a/very/long/path/of/a/photo.jpg"
    assert table.row(path, ["dining table", "wine glass", "knife"], [0.9, 0.8, 0.7]).splitlines() == [
        f"…{path[-19:]}  dining table 0.900,",
        f"{'':20}  wine glass 0.800, knife 0.700",
    ]
    assert table.row("餐.jpg", ["x"], [0.5]) == "餐.jpg" + " " * 14 + "  x 0.500"
