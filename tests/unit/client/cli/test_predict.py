"""`mlcls-client predict`: its inputs, standard input and lists, formats and files."""

import csv
import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from mlcls_client.testing import FakeServer
from support.client_images import NAME, RED, encode_pages
from support.quiet_http import served_folder

Ask = Callable[..., tuple[int, str, str]]


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    paths = [tmp_path / "photos" / name for name in ("img2.png", "img10, b.png", "more/img2.png")]
    for path, color in zip(paths, [(255, 204, 0), (0, 0, 255), (0, 0, 0)], strict=True):
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 30), color).save(path)
    return list(map(str, paths))


def run(server: FakeServer, *arguments: str, stdin: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
    command = [sys.executable, "-m", "mlcls_client", "predict", NAME, *arguments, "--url", server.url]
    return subprocess.run(command, input=stdin, capture_output=True, timeout=60)


def test_a_line_per_image(ask: Ask, photos: list[str], tmp_path: Path) -> None:
    lines = [f"{photos[0]}  red 1.000, green 0.800\n", f"{photos[1]}  blue 1.000\n"]
    lines.append(f"{photos[2]}  (no label above the threshold)\n")
    assert ask("predict", NAME, str(tmp_path / "photos")) == (0, "".join(lines), "")


def test_json_lines(server: FakeServer, ask: Ask, photos: list[str]) -> None:
    threshold = '{"default": 0.9}'
    code, out, _ = ask("predict", NAME, photos[0], "gone.png", "--json", "--threshold", threshold, "--top-k", "1")
    good, failed = (json.loads(line) for line in out.splitlines())
    labels = {"class_ids": [0], "scores": [1.0], "label_names": ["red"]}
    assert (code, good) == (1, {"input_path": photos[0], "page_index": None, **labels})
    assert "does not exist" in failed["error"]
    assert server.requests[-1][1] == threshold


def test_csv(ask: Ask, photos: list[str]) -> None:
    code, out, _ = ask("predict", NAME, *photos, "missing.png", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    keys = ("input_path", "class_id", "label_name", "score")
    assert [tuple(row[key] for key in keys) for row in rows] == [
        (photos[0], "0", "red", "1.0"),
        (photos[0], "1", "green", "0.8"),
        (photos[1], "2", "blue", "1.0"),
        (photos[2], "", "", ""),
        ("missing.png", "", "", ""),
    ]
    assert (code, [bool(row["error"]) for row in rows]) == (1, [False, False, False, False, True])


def test_pages_are_named(ask: Ask, photos: list[str], tmp_path: Path) -> None:
    path = tmp_path / "two.tif"
    path.write_bytes(encode_pages("TIFF", (255, 0, 0), (0, 255, 0)))
    code, out, _ = ask("predict", NAME, path, photos[1], "gone.tif", "--save", tmp_path / "saved")
    lines = [f"{path}[0]  red 1.000", f"{path}[1]  green 1.000", f"{photos[1]}  blue 1.000", "gone.tif  (no result)"]
    assert (code, out.splitlines()) == (1, lines)
    saved = sorted(found.name for found in (tmp_path / "saved").iterdir())
    assert saved == ["img10, b_res.png", "two_0_res.tif", "two_1_res.tif"]
    printed = [json.loads(line) for line in ask("predict", NAME, path, "--json")[1].splitlines()]
    assert [(result["page_index"], result["label_names"]) for result in printed] == [(0, ["red"]), (1, ["green"])]


def test_a_url_is_an_input(ask: Ask, photos: list[str]) -> None:
    with served_folder(Path(photos[0]).parent) as web:
        code, out, err = ask("predict", NAME, f"{web}/img2.png", f"{web}/gone.png")
    assert (code, out.splitlines()[0]) == (1, f"{web}/img2.png  red 1.000, green 0.800")
    assert "404" in err


def test_a_bad_image_has_its_reason_on_standard_error(ask: Ask, photos: list[str], tmp_path: Path) -> None:
    (tmp_path / "photos" / "img3.png").write_bytes(b"junk")
    code, out, err = ask("predict", NAME, tmp_path / "photos", "--batch-size", "4")
    assert (code, len(out.splitlines()), out.count("(no result)")) == (1, 4, 1)
    assert err.startswith("mlcls-client: The server has no result for ")
    assert "img3.png" in err
    code, _, err = ask("predict", NAME, *photos, "--save", photos[0])
    assert (code, err.count("Cannot write")) == (1, 3)


@pytest.mark.parametrize(("option", "count"), [([], 62), (["--fail-on-error"], 2)])
def test_fail_on_error_stops_at_the_first_failure(ask: Ask, photos: list[str], option: list[str], count: int) -> None:
    code, out, _ = ask("predict", NAME, photos[0], __file__, *photos * 20, "--json", *option)
    assert (code, len(out.splitlines())) == (1, count)
    assert json.loads(out.splitlines()[1])["error"]


def test_results_are_saved_as_paddlex_names_them(ask: Ask, photos: list[str], tmp_path: Path) -> None:
    pictures, texts = tmp_path / "pictures", tmp_path / "texts"
    folders = ["--save-img", pictures, "--save-json", texts]
    assert ask("predict", NAME, photos[0], photos[2], *folders, "--concurrency", "2")[0] == 0
    assert sorted(os.listdir(pictures)) == ["img2_res.png", "img2_res_2.png"]
    assert sorted(os.listdir(texts)) == ["img2_res.json", "img2_res_2.json"]
    assert json.loads((texts / "img2_res.json").read_text())["label_names"] == ["red", "green"]


def test_request_ids(server: FakeServer, ask: Ask, photos: list[str]) -> None:
    assert ask("predict", NAME, *photos, "--request-id", "job-17")[0] == 0
    assert sorted(server.request_ids) == ["job-17-0", "job-17-1", "job-17-2"]


def test_a_file_on_standard_input(server: FakeServer, photos: list[str]) -> None:
    done = run(server, "--json", "-", stdin=Path(photos[1]).read_bytes())
    assert (done.returncode, done.stderr) == (0, b"")
    result = json.loads(done.stdout)
    assert (result["input_path"], result["label_names"]) == ("stdin", ["blue"])
    done = run(server, "-", "--json", stdin=encode_pages("TIFF", RED, RED))
    assert [json.loads(line)["page_index"] for line in done.stdout.splitlines()] == [0, 1]
    assert run(server, "-", "--json").returncode == 1, "nothing on standard input is an image that fails"


def test_lists_of_inputs(server: FakeServer, photos: list[str], tmp_path: Path) -> None:
    lines = "\n".join(photos) + "\n\n"
    listed = tmp_path / "list.txt"
    listed.write_text(lines.replace("\n", "\r\n"))
    for argument, stdin in (("@-", lines.encode()), (f"@{listed}", b"")):
        done = run(server, argument, "--json", stdin=stdin)
        assert done.returncode == 0, done.stderr
        assert [json.loads(line)["input_path"] for line in done.stdout.splitlines()] == photos


def test_a_list_is_answered_as_it_comes(server: FakeServer, photos: list[str]) -> None:
    command = [sys.executable, "-m", "mlcls_client", "predict", NAME, "@-", "--url", server.url]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    stdin, first = process.stdin, threading.Event()
    written: list[str] = []

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
        assert process.stdout.readline().startswith(photos[0])
        first.set()
        feeding.join()
        assert len(written) < 1000, "the list had not come to its end"
        assert len(process.stdout.readlines()) == len(written) - 1
        assert process.wait(20) == 0
    finally:
        first.set()
        process.kill()
