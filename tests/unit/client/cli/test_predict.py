"""The `mlcls-client` command: standard input, lists, formats, files, progress, `models` and `health`."""

import csv
import fcntl
import io
import json
import os
import pty
import struct
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import pytest
from PIL import Image

from mlcls_client import InvalidRequestError
from mlcls_client.cli import terminal
from mlcls_client.cli.main import main
from mlcls_client.testing import FakeServer
from support.client_images import NAME, encode


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / name for name in ("red, green.png", "blue.png", "black.png")]
    for path, color in zip(paths, [(255, 204, 0), (0, 0, 255), (0, 0, 0)], strict=True):
        Image.new("RGB", (40, 30), color).save(path)
    return paths


def run(server: FakeServer, *arguments: object, stdin: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
    command = [sys.executable, "-m", "mlcls_client", *map(str, arguments), "--url", server.url]
    return subprocess.run(command, input=stdin, capture_output=True, timeout=60)


def test_a_file_on_standard_input(server: FakeServer, photos: list[Path]) -> None:
    done = run(server, "predict", NAME, "--json", "-", stdin=photos[1].read_bytes())
    assert (done.returncode, done.stderr) == (0, b"")
    result = json.loads(done.stdout)
    assert (result["input_path"], result["label_names"]) == ("stdin", ["blue"])
    pages = io.BytesIO()
    Image.open(photos[0]).save(pages, "TIFF", save_all=True, append_images=[Image.open(photos[1])])
    done = run(server, "predict", NAME, "-", "--json", stdin=pages.getvalue())
    assert [json.loads(line)["page_index"] for line in done.stdout.splitlines()] == [0, 1]
    done = run(server, "predict", NAME, "-", "--json")
    assert done.returncode == 1, "nothing on standard input is an image that fails"


def test_lists_of_inputs(server: FakeServer, photos: list[Path], tmp_path: Path) -> None:
    lines = "\n".join(map(str, photos)) + "\n\n"
    listed = tmp_path / "list.txt"
    listed.write_text(lines.replace("\n", "\r\n"))
    for arguments, stdin in ((["@-"], lines.encode()), ([f"@{listed}"], b"")):
        done = run(server, "predict", NAME, *arguments, "--json", stdin=stdin)
        assert done.returncode == 0, done.stderr
        assert [json.loads(line)["input_path"] for line in done.stdout.splitlines()] == list(map(str, photos))
    assert run(server, "predict", NAME, "@-", "-").returncode == 2
    done = run(server, "predict", NAME, "@missing.txt")
    assert done.returncode == 2
    assert b"Cannot read the list 'missing.txt'" in done.stderr


def test_a_list_is_answered_as_it_comes(server: FakeServer, photos: list[Path]) -> None:
    command = [sys.executable, "-m", "mlcls_client", "predict", NAME, "@-", "--json", "--url", server.url]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    stdin, first = process.stdin, threading.Event()
    written: list[Path] = []

    def feed() -> None:
        while not first.is_set() and len(written) < 1000:
            stdin.write(f"{photos[0]}\n")
            stdin.flush()
            written.append(photos[0])
            time.sleep(0.02)
        stdin.close()

    feeding = threading.Thread(target=feed)
    feeding.start()
    try:
        assert json.loads(process.stdout.readline())["input_path"] == str(photos[0])
        first.set()
        feeding.join()
        assert len(written) < 1000, "the list had not come to its end"
        assert len(process.stdout.readlines()) == len(written) - 1
        assert process.wait(20) == 0
    finally:
        first.set()
        process.kill()


def test_csv(server: FakeServer, photos: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["predict", NAME, *map(str, photos), "missing.png", "--format", "csv", "--url", server.url]
    assert main(arguments) == 1
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(Path(row["input_path"]).name, row["class_id"], row["label_name"], row["score"]) for row in rows] == [
        ("red, green.png", "0", "red", "1.0"),
        ("red, green.png", "1", "green", "0.8"),
        ("blue.png", "2", "blue", "1.0"),
        ("black.png", "", "", ""),
        ("missing.png", "", "", ""),
    ]
    assert [bool(row["error"]) for row in rows] == [False, False, False, False, True]


def test_top_k_and_concurrency(server: FakeServer, photos: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--url", server.url, "--json"]
    assert main(["predict", NAME, str(photos[0]), "--top-k", "1", "--concurrency", "2", *where]) == 0
    assert json.loads(capsys.readouterr().out)["label_names"] == ["red"]
    assert main(["predict", NAME, str(photos[0]), "--concurrency", "97", *where]) == 2
    assert "concurrency to be from 1 to 96" in capsys.readouterr().err
    assert main(["predict", NAME, str(photos[0]), "--top-k", "0", *where]) == 2


def test_request_ids(server: FakeServer, photos: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", NAME, *map(str, photos), "--request-id", "job-17", "--url", server.url]) == 0
    assert sorted(server.request_ids) == [f"job-17-{index}" for index in range(len(photos))]
    capsys.readouterr()
    assert main(["predict", NAME, str(photos[0]), "--request-id", "job 17", "--url", server.url]) == 2
    assert "Expected request_id to be 1 to 100 printable ASCII characters" in capsys.readouterr().err


@pytest.mark.parametrize("fail", [False, True])
def test_fail_on_error_stops_at_the_first_failure(
    server: FakeServer, photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], fail: bool
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"junk")
    inputs = [photos[0], bad, *photos * 20]
    arguments = ["predict", NAME, *map(str, inputs), "--json", "--url", server.url]
    assert main([*arguments, "--fail-on-error"] if fail else arguments) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == (2 if fail else 62)
    assert json.loads(lines[1])["error"]


def test_results_are_saved_as_paddlex_names_them(server: FakeServer, photos: list[Path], tmp_path: Path) -> None:
    pictures, texts = tmp_path / "pictures", tmp_path / "texts"
    arguments = ["--save-img", str(pictures), "--save-json", str(texts), "--url", server.url]
    assert main(["predict", NAME, str(photos[1]), str(photos[1]), *arguments]) == 0
    assert sorted(os.listdir(pictures)) == ["blue_res.png", "blue_res_2.png"]
    assert sorted(os.listdir(texts)) == ["blue_res.json", "blue_res_2.json"]
    assert json.loads((texts / "blue_res.json").read_text())["label_names"] == ["blue"]


def test_the_address_may_come_from_the_environment(
    server: FakeServer, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLCLS_URL", server.url)
    assert main(["predict", NAME, str(photos[1])]) == 0


def test_models(server: FakeServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    server.admin_key = "secret"
    for key in (None, "secret"):
        if key is not None:
            monkeypatch.setenv("MLCLS_ADMIN_KEY", key)
        assert main(["models", "--url", server.url]) == 0
        assert capsys.readouterr().out == f"model             version  state\n{NAME}  1        READY\n"
    sent = [headers.get("triton-grpc-protocol-mlcls-admin-key") for headers in server.headers]
    assert sent == [None, None, "secret"], "first without a key, then the statistics; then with the key"
    assert main(["models", "--all", "--url", server.url]) == 0
    assert f"{NAME}_engine" in capsys.readouterr().out


def test_health(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["health", "--url", server.url]) == 0
    assert capsys.readouterr().out == "fake 0: ready\n"
    assert main(["health", NAME, "other", "--url", server.url]) == 3
    assert capsys.readouterr().out.splitlines()[1:] == [f"{NAME}: ready", "other: not ready, or not on this server"]
    server.ready = False
    assert main(["health", "--url", server.url]) == 3
    assert "live, not ready" in capsys.readouterr().out
    assert main(["health", "--url", "127.0.0.1:9", "--timeout", "1"]) == 3


def test_the_progress_bar_is_for_terminals(server: FakeServer, photos: list[Path], tmp_path: Path) -> None:
    done = run(server, "predict", NAME, tmp_path, "--json")
    assert done.stderr == b""
    done = run(server, "predict", NAME, tmp_path, "--json", "--progress")
    assert b"3/3" in done.stderr
    assert len(done.stdout.splitlines()) == 3
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    command = [sys.executable, "-m", "mlcls_client", "predict", NAME, str(tmp_path), "--json", "--url", server.url]
    process = subprocess.Popen(command, stderr=follower, stdout=subprocess.PIPE)
    os.close(follower)
    shown = _read_all(leader)
    assert process.wait(20) == 0
    assert b"3/3" in shown


def _read_all(descriptor: int) -> bytes:
    content = b""
    while True:
        try:
            block = os.read(descriptor, 4096)
        except OSError:  # the other side has ended
            return content
        if not block:
            return content
        content += block


def test_without_rich_there_is_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    with pytest.raises(InvalidRequestError, match=r"needs rich, .* pip install 'mlcls-client\[cli\]'"):
        terminal.ProgressBar(True, lambda: None)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with terminal.ProgressBar(None, lambda: None) as bar, bar.pause():
        bar.advance()


def test_a_long_input_is_printed_as_it_comes(server: FakeServer, tmp_path: Path) -> None:
    first = tmp_path / "list.txt"
    (tmp_path / "a.png").write_bytes(encode())
    first.write_text(f"{tmp_path / 'a.png'}\n" * 1500)
    hold = threading.Event()
    server.delay = lambda images: (hold.wait(20), None)[1] if len(server.requests) > 1200 else None
    command = [sys.executable, "-m", "mlcls_client", "predict", NAME, f"@{first}", "--url", server.url]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        began = time.monotonic()
        lines = [process.stdout.readline() for _ in range(1000)]
        assert all(lines)
        assert time.monotonic() - began < 20
        hold.set()
        assert len(process.stdout.readlines()) == 500
    finally:
        hold.set()
        process.kill()
