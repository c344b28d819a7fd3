"""The `mlcls-client` command: its output and exit codes."""

import argparse
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from PIL import Image

from mlcls_client import MultiLabelResult, ServerUnavailableError
from mlcls_client.cli.main import main
from mlcls_client.cli.output import TableWriter
from mlcls_client.cli.predict import add_predict_arguments, run_predict
from mlcls_client.testing import FakeServer
from mlcls_client.transport.contract import Answer

NAME = "PP-LCNet_x1_0_ML"


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Keep standard error for the command."""


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLCLS_API_KEY", raising=False)


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


def test_a_line_per_image(server: FakeServer, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", NAME, str(folder), "--url", server.url]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        f"{folder / 'img2.png'}  red 1.000, green 0.800",
        f"{folder / 'img10.png'}  blue 1.000",
        f"{folder / 'more/img2.png'}  (no label above the threshold)",
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
    assert "does not exist" in failed["error"]
    assert server.requests[-1][1] == '{"default": 0.9}'


def test_pages_are_named(server: FakeServer, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pages = [Image.new("RGB", (40, 30), color) for color in [(255, 0, 0), (0, 255, 0)]]
    path = tmp_path / "two.tif"
    pages[0].save(path, save_all=True, append_images=pages[1:])
    arguments = [str(path), str(folder / "img10.png"), str(tmp_path / "gone.tif"), "--url", server.url]
    assert main(["predict", NAME, *arguments, "--save", str(tmp_path / "saved")]) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"{path}[0]  red 1.000",
        f"{path}[1]  green 1.000",
        f"{arguments[1]}  blue 1.000",
        f"{arguments[2]}  (no result)",
    ]
    saved = sorted(found.name for found in (tmp_path / "saved").iterdir())
    assert saved == ["img10_res.png", "two_0_res.tif", "two_1_res.tif"]
    assert main(["predict", NAME, str(path), "--json", "--url", server.url]) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(result["page_index"], result["label_names"]) for result in printed] == [(0, ["red"]), (1, ["green"])]


def test_a_url_is_an_input(
    server: FakeServer, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("no_proxy", "*")
    handler = partial(QuietHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        Thread(target=web.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        base = f"http://127.0.0.1:{web.server_port}"
        assert main(["predict", NAME, f"{base}/img10.png", f"{base}/gone.png", "--url", server.url]) == 1
        web.shutdown()
    captured = capsys.readouterr()
    assert f"{base}/img10.png  blue 1.000" in captured.out
    assert "404" in captured.err


def test_headers_and_the_key_are_sent(server: FakeServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["predict", NAME, str(folder), "--url", server.url, "--header", "X-Tenant: a: b", "--header", "y:2"]
    monkeypatch.setenv("MLCLS_API_KEY", "from-environment")
    assert main(arguments) == 0
    assert {"x-tenant": "a: b", "y": "2"}.items() <= server.headers[-1].items()
    assert server.headers[-1]["authorization"] == "Bearer from-environment"
    assert main([*arguments, "--api-key", "from-argument"]) == 0
    assert server.headers[-1]["authorization"] == "Bearer from-argument"
    monkeypatch.setenv("MLCLS_API_KEY", "")
    assert main(["wait", NAME, "--url", server.url, "--header", "y: 3"]) == 0
    assert server.headers[-1]["y"] == "3"
    assert "authorization" not in server.headers[-1]


def test_retries(server: FakeServer, folder: Path) -> None:
    server.outages = 1
    assert main(["predict", NAME, str(folder), "--url", server.url, "--retries", "0"]) == 3
    server.outages = 1
    assert main(["predict", NAME, str(folder), "--url", server.url, "--retries", "1"]) == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], False),
        (["--ssl"], True),
        (["--ssl-root-certificates", "r.pem"], {"root_certificates": "r.pem"}),
        (
            ["--ssl", "--ssl-private-key", "k.pem", "--ssl-certificate-chain", "c.pem"],
            {"private_key": "k.pem", "certificate_chain": "c.pem"},
        ),
    ],
)
def test_ssl(monkeypatch: pytest.MonkeyPatch, arguments: list[str], expected: object) -> None:
    given: dict[str, object] = {}

    def create(*args: object, **options: object) -> None:
        given.update(options)
        raise ServerUnavailableError("no connection is made here")

    monkeypatch.setattr("mlcls_client.cli.arguments.create_model", create)
    assert main(["predict", NAME, "a.png", *arguments]) == 3
    assert given["ssl"] == expected


def test_a_bad_image_has_its_reason_on_standard_error(
    server: FakeServer, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "img3.png").write_bytes(b"junk")
    assert main(["predict", NAME, str(folder), "--url", server.url, "--batch-size", "4"]) == 1
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 4
    assert captured.out.count("(no result)") == 1
    assert captured.err.startswith("mlcls-client: The server has no result for ")
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
    assert capsys.readouterr().err.count("Cannot write") == 3


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
        ["predict", NAME, "a.png", "--retries", "-1"],
        ["predict", NAME, "a.png", "--retries", "many"],
        ["predict", NAME, "a.png", "--header", "s3cret"],
        ["predict", NAME, "a.png", "--header", "x: s3cret", "--header", "X: s3cret"],
        ["predict", NAME, "a.png", "--header", "authorization: s3cret", "--api-key", "s3cret"],
        ["predict", NAME, "a.png", "--ssl-root-certificates", "missing.pem"],
        ["predict", NAME, "a.png", "--ssl-private-key", __file__],
    ],
)
def test_wrong_usage_is_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    complaint = capsys.readouterr().err
    assert complaint
    assert "s3cret" not in complaint


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


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal of 40 cells on standard output."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "40")


def rows(*results: MultiLabelResult) -> list[str]:
    writer = TableWriter()
    text = "\n".join(line for result in results for line in writer.lines(result))
    return [line.rstrip() for line in re.sub(r"\x1b\[[\d;]*m", "", text).splitlines()]


def labeled(path: str, *names: str, page_index: int | None = None) -> MultiLabelResult:
    answer = Answer("OK", tuple(range(len(names))), (0.9,) * len(names), names)
    return MultiLabelResult(answer, input_path=path, page_index=page_index)


@pytest.mark.usefixtures("terminal")
def test_rows_fit_a_terminal() -> None:
    photo = labeled("a/very/long/path.jpg", "dining table", "wine glass")
    assert rows(labeled("餐.pdf", "cat", page_index=3), photo, labeled("a.png")) == [
        "餐.pdf[3]  cat 0.900",
        "a/very/long/path  dining table 0.900,",
        ".jpg              wine glass 0.900",
        "a.png             (no label above the",
        "                  threshold)",
    ]


@pytest.mark.usefixtures("terminal")
def test_without_rich_a_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert rows(labeled("a.png", "dining table", "wine glass")) == ["a.png  dining table 0.900, wine glass 0.900"]
