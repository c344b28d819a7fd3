"""The `mlcls-client` command: its output and exit codes."""

import argparse
import json
import os
import re
import subprocess
import sys
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
from support.client_images import NAME


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Keep standard error for the command."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    photos = tmp_path / "photos"
    (photos / "more").mkdir(parents=True)
    Image.new("RGB", (40, 30), (255, 204, 0)).save(photos / "img2.png")
    Image.new("RGB", (40, 30), (0, 0, 255)).save(photos / "img10.png")
    Image.new("RGB", (40, 30), (0, 0, 0)).save(photos / "more" / "img2.png")
    return photos


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


def test_a_url_is_an_input(server: FakeServer, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(folder))) as web:
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
    assert main(["predict", NAME, str(folder / "img2.png"), "--url", server.url, "--save", __file__]) == 1
    assert capsys.readouterr().err.count("Cannot write") == 1


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


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (["predict", NAME, "FOLDER", "--threshold", '{"person": 0.5}'], 2, "neither a number nor a dict"),
        (["predict", NAME, "FOLDER", "--url", "127.0.0.1:9", "--retries", "0"], 3, "Check the address"),
        (["predict", "ResNet50_ML", "FOLDER"], 3, "no model 'ResNet50_ML'"),
        (["wait", NAME], 0, ""),
        (["wait", NAME, "--url", "127.0.0.1:9", "--timeout", "0.3"], 3, "ready within 0.3 s"),
        (["wait", "ResNet50_ML", "--timeout", "0.3"], 3, "the model is not loaded or not ready"),
    ],
)
def test_what_the_server_decides(
    server: FakeServer,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    complaint: str,
) -> None:
    where = [] if "--url" in arguments else ["--url", server.url]
    assert main([str(folder) if argument == "FOLDER" else argument for argument in arguments] + where) == code
    assert complaint in capsys.readouterr().err


def test_retries(server: FakeServer, folder: Path) -> None:
    for retries, code in (("0", 3), ("1", 0)):
        server.outages = 1
        assert main(["predict", NAME, str(folder), "--url", server.url, "--retries", retries]) == code


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
