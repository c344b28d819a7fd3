"""The `mlcls-client` command: exit codes, the connection, `wait`, `models` and `health`, the terminal."""

import argparse
import fcntl
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest

from mlcls_client import InvalidRequestError, MultiLabelResult
from mlcls_client.cli.arguments import add_server_arguments, read_server_arguments
from mlcls_client.cli.main import main
from mlcls_client.cli.output import ProgressBar, TableWriter
from mlcls_client.cli.predict import add_predict_arguments, run_predict
from mlcls_client.testing import FakeServer
from mlcls_client.transport.contract import Answer
from support.client_images import NAME, encode

Ask = Callable[..., tuple[int, str, str]]


@pytest.fixture
def photo(tmp_path: Path) -> str:
    (tmp_path / "photo.png").write_bytes(encode())
    return str(tmp_path / "photo.png")


def test_headers_and_the_key_are_sent(
    server: FakeServer, ask: Ask, photo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["predict", NAME, photo, "--header", "X-Tenant: a: b", "--header", "y:2"]
    monkeypatch.setenv("MLCLS_API_KEY", "from-environment")
    assert ask(*arguments)[0] == 0
    assert {"x-tenant": "a: b", "y": "2"}.items() <= server.headers[-1].items()
    assert server.headers[-1]["authorization"] == "Bearer from-environment"
    assert ask(*arguments, "--api-key", "from-argument")[0] == 0
    assert server.headers[-1]["authorization"] == "Bearer from-argument"
    monkeypatch.setenv("MLCLS_API_KEY", "")
    assert ask("wait", NAME, "--header", "y: 3")[0] == 0
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
def test_ssl(arguments: list[str], expected: object) -> None:
    parser = argparse.ArgumentParser()
    add_server_arguments(parser)
    assert read_server_arguments(parser.parse_args(arguments))["ssl"] == expected


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "predict model",
        "predict model a.png --threshold high",
        'predict model a.png --threshold {"default":"0.5"}',
        "predict model a.png --threshold null",
        "predict model a.png --batch-size 0",
        "predict model a.png --top-k 0",
        "predict model a.png --concurrency 97",
        "predict model a.png --timeout 0",
        "predict model a.png --url http://localhost:8000",
        "predict model a.png --retries many",
        "predict model a.png --header s3cret",
        "predict model a.png --header x:s3cret --header X:s3cret",
        "predict model a.png --header authorization:s3cret --api-key s3cret",
        "predict model a.png --ssl-root-certificates missing.pem",
        "predict model @- -",
        "predict model @missing.txt",
    ],
)
def test_wrong_usage_is_2(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments.split(" ") if arguments else []) == 2
    complaint = capsys.readouterr().err
    assert complaint
    assert "s3cret" not in complaint


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["predict", NAME, "PHOTO", "--threshold", '{"person": 0.5}'], 2, "neither a number nor a dict"),
        (["predict", NAME, "PHOTO", "--url", "127.0.0.1:9", "--retries", "0"], 3, "Check the address"),
        (["predict", "ResNet50_ML", "PHOTO"], 3, "no model 'ResNet50_ML'"),
        (["predict", NAME, "PHOTO", "--retries", "0"], 3, "is being restarted"),
        (["predict", NAME, "PHOTO", "--retries", "1"], 0, "red 0.784"),
        (["predict", "--help"], 0, "exit codes:"),
        (["wait", NAME], 0, ""),
        (["wait", NAME, "--url", "127.0.0.1:9", "--timeout", "0.3"], 3, "ready within 0.3 s"),
        (["wait", "ResNet50_ML", "--timeout", "0.3"], 3, "the model is not loaded or not ready"),
        (["health"], 0, "fake 0: ready\n"),
        (["health", NAME, "other"], 3, f"{NAME}: ready\nother: not ready, or not on this server\n"),
        (["health", "--url", "127.0.0.1:9", "--timeout", "1"], 3, "Check the address"),
    ],
)
def test_what_the_server_decides(
    server: FakeServer, ask: Ask, photo: str, arguments: list[str], code: int, said: str
) -> None:
    server.outages = 1 if "--retries" in arguments else 0
    found, out, err = ask(*(photo if argument == "PHOTO" else argument for argument in arguments))
    assert (found, said in out + err) == (code, True), out + err


def test_models(server: FakeServer, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    server.admin_key = "secret"
    table = f"model             version  state\n{NAME}  1        READY\n"
    assert ask("models") == (0, table, "")
    monkeypatch.setenv("MLCLS_ADMIN_KEY", "secret")
    assert ask("models") == (0, table, "")
    sent = [headers.get("triton-grpc-protocol-mlcls-admin-key") for headers in server.headers]
    assert sent == [None, None, "secret"], "first without a key, then the statistics; then with the key"
    assert f"{NAME}_engine" in ask("models", "--all")[1]
    server.ready = False
    assert ask("health") == (3, "fake 0: live, not ready\n", "")


def test_another_command_can_offer_the_same(server: FakeServer, photo: str) -> None:
    parser = argparse.ArgumentParser()
    add_predict_arguments(parser)
    assert run_predict(parser.parse_args([NAME, photo, "--url", server.url])) == 0


def test_the_address_may_come_from_the_environment(
    server: FakeServer, photo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLCLS_URL", server.url)
    assert main(["predict", NAME, photo]) == 0


OUTPUT = [["predict", NAME, "PHOTO"], ["models"], ["health"]]


def run_into(redirection: str, server: FakeServer, photo: str, arguments: list[str]) -> tuple[int, str]:
    """Run the command with another standard output; returns its exit code and what it wrote to standard error."""
    words = [sys.executable, "-m", "mlcls_client", *arguments, "--url", server.url]
    command = shlex.join(photo if word == "PHOTO" else word for word in words) + f" {redirection}"
    script = f"set -o pipefail; {command}"
    done = subprocess.run(["bash", "-c", script], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    return done.returncode, done.stderr


@pytest.mark.parametrize("arguments", OUTPUT, ids=" ".join)
def test_a_reader_that_leaves_is_no_error(server: FakeServer, photo: str, arguments: list[str]) -> None:
    assert run_into("| true", server, photo, arguments) == (0, "")


@pytest.mark.parametrize("arguments", OUTPUT, ids=" ".join)
def test_a_full_disk_is_told(server: FakeServer, photo: str, arguments: list[str]) -> None:
    said = "mlcls-client: Cannot write to standard output: No space left on device.\n"
    assert run_into("> /dev/full", server, photo, arguments) == (4, said)


def test_a_closed_output_is_told(server: FakeServer, photo: str) -> None:
    said = "mlcls-client: Cannot write to standard output, which is closed.\n"
    assert run_into(">&-", server, photo, ["predict", NAME, "PHOTO"]) == (4, said)
    assert run_into("2>&-", server, photo, ["predict", NAME, "PHOTO", "missing.png"]) == (1, "")


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal of 40 cells on standard output."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "40")


def rows(*results: MultiLabelResult) -> list[str]:
    writer = TableWriter()
    text = "\n".join(line for result in results for line in writer.lines(result))
    return [line.rstrip() for line in re.sub(r"\x1b\[[\d;]*m", "", text).splitlines()]


def labeled(path: str, *names: str, page_index: int | None = None) -> MultiLabelResult:
    return MultiLabelResult(Answer("OK", tuple(range(len(names))), (0.9,) * len(names), names), path, page_index)


@pytest.mark.usefixtures("narrow")
def test_rows_fit_a_terminal() -> None:
    photo = labeled("a/very/long/path.jpg", "dining table", "wine glass")
    assert rows(labeled("餐.pdf", "cat", page_index=3), photo, labeled("a.png")) == [
        "餐.pdf[3]  cat 0.900",
        "a/very/long/path  dining table 0.900,",
        ".jpg              wine glass 0.900",
        "a.png             (no label above the",
        "                  threshold)",
    ]


@pytest.mark.usefixtures("narrow")
def test_without_rich_there_are_plain_lines_and_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert rows(labeled("a.png", "dining table", "wine glass")) == ["a.png  dining table 0.900, wine glass 0.900"]
    with pytest.raises(InvalidRequestError, match=r"needs rich, .* pip install 'mlcls-client\[cli\]'"):
        ProgressBar(True, lambda: None)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with ProgressBar(None, lambda: None) as bar, bar.pause():
        bar.advance()


@pytest.mark.parametrize("option", [[], ["--progress"], ["--no-progress"]])
@pytest.mark.parametrize("is_terminal", [False, True])
def test_the_progress_bar_is_for_terminals(
    server: FakeServer, photo: str, is_terminal: bool, option: list[str]
) -> None:
    leader, follower = pty.openpty() if is_terminal else os.pipe()
    if is_terminal:
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    command = [sys.executable, "-m", "mlcls_client", "predict", NAME, photo, photo, "--json", "--url", server.url]
    done = subprocess.run([*command, *option], stdout=subprocess.PIPE, stderr=follower, timeout=60)
    os.write(follower, b"end")
    shown = os.read(leader, 65536)
    os.close(leader)
    os.close(follower)
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 2)
    expected = option == ["--progress"] or (is_terminal and not option)
    assert b"2/2" in shown if expected else shown == b"end"
