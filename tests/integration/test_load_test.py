"""The load test against the real server: what it counts is what happened, and wrong answers do not pass."""

from __future__ import annotations

import csv
import json
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks.asking import ask, connect
from benchmarks.load import __main__ as load_test
from benchmarks.load.answers import learn_answers, write_answers
from benchmarks.load.images import read_photos
from mlcls.images.photos import photo_crops
from mlcls.server.process import TritonServer
from support.processes import ROOT

MODEL = "small_with_sigmoid"
PHOTOS = 8

# Requests by protocol and outcome, as Locust counted them.
Counts = dict[tuple[str, str], int]
# Runs a load test with further options: its exit status, the counts, and its folder.
Run = Callable[..., tuple[int, Counts, Path]]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (ROOT / ".venv-bench" / "bin" / "locust").exists(),
        reason="locust is not installed; run: make .venv-bench/.installed",
    ),
]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number, crop in enumerate(photo_crops(PHOTOS, seed=5)):
        path = folder / ("small", "medium")[number % 2] / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(crop).resize((320, 240)).save(path)
    return folder


@pytest.fixture
def run(small_server: TritonServer, photos: Path, tmp_path: Path) -> Run:
    def run_load_test(*options: str) -> tuple[int, Counts, Path]:
        common = ["--model", MODEL, "--url", small_server.grpc_url, "--http-url", small_server.http_url]
        common += ["--photos", str(photos), "--output", str(tmp_path), "--users", "6", "--shape", "soak"]
        status = load_test.main([*common, *options])
        (folder,) = tmp_path.iterdir()
        return status, read_counts(folder), folder

    return run_load_test


def read_counts(folder: Path) -> Counts:
    path = folder / "locust_stats.csv"
    if not path.exists():
        return {}
    with path.open(encoding="utf-8") as file:
        return {(row["Type"], row["Name"]): int(row["Request Count"]) for row in csv.DictReader(file) if row["Type"]}


def answered_right(counts: Counts) -> int:
    return sum(count for (_, name), count in counts.items() if re.fullmatch(r"\d+ images?", name))


@pytest.fixture(scope="module")
def learned(small_server: TritonServer, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The expected answers, by photo's digest, as the load test learns them."""
    path = tmp_path_factory.mktemp("learned") / "expected.json"
    samples = [sample for group in read_photos(photos).values() for sample in group]
    book = learn_answers(lambda images: ask(connect(small_server.grpc_url), MODEL, images), samples)
    assert book.alike == 0, "the photos' answers are so alike that exchanged ones would pass"
    write_answers(path, book)
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def count_answers(server: TritonServer) -> int:
    """Requests that the server has answered, by its own count."""
    with urllib.request.urlopen(server.metrics_url) as response:
        found = re.search(rf'nv_inference_request_success{{model="{MODEL}".*?}} (\d+)', response.read().decode())
    assert found is not None
    return int(found.group(1))


def test_every_answer_is_right_and_none_is_lost(small_server: TritonServer, run: Run) -> None:
    before = count_answers(small_server)
    status, counts, folder = run("--run-time", "6", "--processes", "2", "--bad-share", "0.1", "--batch-mix", "1=4,4=1")
    learned = 2 * PHOTOS * 3  # by the master and both workers, unless another had written them
    answered = count_answers(small_server) - before
    assert status == 0
    assert {name for _, name in counts} == {"1 image", "4 images", "bad image refused"}
    assert all(counts[protocol, name] for protocol in ("grpc", "http") for name in ("1 image", "bad image refused"))
    assert 0 <= answered - answered_right(counts) <= learned, "the server and the clients count the same answers"
    assert answered_right(counts) > 50
    assert "<html" in (folder / "locust.html").read_text(encoding="utf-8")
    summary = (folder / "summary.md").read_text(encoding="utf-8")
    assert f"| grpc | 1 image | {counts['grpc', '1 image']} | 0 |" in summary
    assert summary.endswith("Passed.\n")


@pytest.mark.parametrize("tampered", ["exchanged", "scores", "labels"])
def test_answers_other_than_the_expected_ones_are_faults(
    run: Run, learned: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, tampered: str
) -> None:
    """To expect other answers is as good as a server that gives other ones."""
    expected = json.loads(json.dumps(learned))
    one, other = list(expected["answers"].values())[:2]
    if tampered == "exchanged":
        one["scores"], other["scores"] = other["scores"], one["scores"]
        one["class_ids"], other["class_ids"] = other["class_ids"], one["class_ids"]
    elif tampered == "scores":
        one["scores"][0] += 0.01
    else:
        expected["labels"] = {class_id: f"not {label}" for class_id, label in expected["labels"].items()}
    path = tmp_path_factory.mktemp("tampered") / "expected.json"
    path.write_text(json.dumps(expected), encoding="utf-8")
    status, counts, folder = run("--run-time", "2", "--bad-share", "0", "--expected", str(path))
    assert status == 1
    kind = "crossed answer" if tampered == "exchanged" else "wrong answer"
    assert counts["grpc", kind] > 0
    assert counts["http", kind] > 0
    assert {name for _, name in counts if "answer" in name} == {kind}
    assert f"1 image: {kind}: " in (folder / "locust_failures.csv").read_text(encoding="utf-8")
    assert "FAILED" in (folder / "summary.md").read_text(encoding="utf-8")


def test_an_interrupt_ends_the_test_and_loses_no_answer(
    small_server: TritonServer, photos: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "benchmarks.load", "--model", MODEL, "--run-time", "600", "--processes", "2"]
    command += ["--url", small_server.grpc_url, "--http-url", small_server.http_url, "--photos", str(photos)]
    process = subprocess.Popen([*command, "--output", str(tmp_path), "--users", "8"], cwd=ROOT)
    try:
        deadline = time.monotonic() + 60
        while not any("All users spawned" in log.read_text() for log in tmp_path.glob("*/locust.log")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        time.sleep(2)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
    (folder,) = tmp_path.iterdir()
    counts = read_counts(folder)
    assert answered_right(counts) > 0
    assert {name for _, name in counts} <= {"1 image", "4 images", "8 images", "bad image refused"}


def test_answers_after_the_deadline_are_late(
    run: Run, learned: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("late") / "expected.json"
    path.write_text(json.dumps(learned), encoding="utf-8")
    options = ["--run-time", "2", "--bad-share", "0", "--think-time", "0.1", "--batch-mix", "16=1"]
    status, counts, _ = run(*options, "--deadline", "0.002", "--expected", str(path))
    assert status == 1
    assert set(counts) == {("grpc", "late"), ("http", "late")}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--bad-share", "2"], "Expected a --bad-share from 0 to 1, got 2"),
        (["--batch-mix", "x"], "Expected weights like"),
        (["--model", "none"], "Expected an answer for"),
    ],
)
def test_a_test_that_cannot_run_says_why(
    run: Run, options: list[str], words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    status, counts, _ = run("--run-time", "2", *options)
    assert (status, counts) == (1, {})
    assert words in capfd.readouterr().err
