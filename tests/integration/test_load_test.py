"""The load test against the real server: what it counts is what happened, and wrong answers do not pass."""

from __future__ import annotations

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

from benchmarks.load import __main__ as load_test
from mlcls.images.photos import photo_crops
from mlcls.server.process import TritonServer
from support.processes import ROOT

MODEL = "small_with_sigmoid"
PHOTOS = 8

# Runs a load test with further options: its exit status and its summary.
Run = Callable[..., tuple[int, dict[str, Any]]]

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
    def run_load_test(*options: str) -> tuple[int, dict[str, Any]]:
        common = ["--model", MODEL, "--url", small_server.grpc_url, "--http-url", small_server.http_url]
        common += ["--photos", str(photos), "--output", str(tmp_path), "--users", "6", "--shape", "soak"]
        status = load_test.main([*common, *options])
        (folder,) = tmp_path.iterdir()
        return status, json.loads((folder / "summary.json").read_text(encoding="utf-8")) | {"folder": folder}

    return run_load_test


@pytest.fixture(scope="module")
def learnt(small_server: TritonServer, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The expected answers, by photo's digest, as the load test learns them."""
    from benchmarks.load.locustfiles import triton_http
    from benchmarks.load.locustfiles.answers import learn_answers, write_answers
    from benchmarks.load.locustfiles.images import read_photos

    url, path = f"http://{small_server.http_url}", tmp_path_factory.mktemp("learnt") / "expected.json"
    samples = [sample for group in read_photos(photos).values() for sample in group]
    book = learn_answers(lambda images: triton_http.ask(url, MODEL, images, None, 30.0), samples)
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
    status, summary = run("--run-time", "6", "--processes", "2", "--bad-share", "0.1", "--batch-mix", "1=4,4=1")
    answered = count_answers(small_server) - before
    assert status == 0
    assert summary["fit"] is True
    total = summary["all"]
    images, requests = total["images"], total["requests"]
    assert images["right"] > 50
    assert images["right"] + images["bad image refused"] == images["sent"]
    assert images["unfinished"] == 0
    assert images["bad image refused"] / images["sent"] == pytest.approx(0.1, abs=0.08)
    assert requests["right"] + requests["bad image refused"] == requests["sent"]
    assert answered == requests["right"] + 2 * PHOTOS, "answers that the clients counted, and those that were learnt"
    for protocol in ("grpc", "http"):
        figures = summary["by_protocol"][protocol]
        assert figures["images"]["right"] > 10
        assert figures["images"]["bad image refused"] > 0
        assert 0 < figures["p50_ms"] <= figures["p95_ms"] <= figures["p99_ms"]
    assert max(row["users"] or 0 for row in summary["timeline"]) == 6
    folder = summary["folder"]
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "<html" in (folder / "locust.html").read_text(encoding="utf-8")
    statistics = (folder / "locust_stats.csv").read_text(encoding="utf-8")
    counts = [int(line.split(",")[2]) for line in statistics.splitlines()[1:] if not line.startswith(",Aggregated")]
    assert sum(counts) == requests["sent"], "locust and we count the same requests"


@pytest.mark.parametrize("tampered", ["exchanged", "scores", "labels"])
def test_answers_other_than_the_expected_ones_are_faults(
    run: Run, learnt: dict[str, Any], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, tampered: str
) -> None:
    """To expect other answers is as good as a server that gives other ones."""
    expected = json.loads(json.dumps(learnt))
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
    status, summary = run("--run-time", "2", "--bad-share", "0", "--expected", str(path))
    assert status == 1
    kind, images = ("crossed answer" if tampered == "exchanged" else "wrong answer"), summary["all"]["images"]
    assert images[kind] > 0
    assert images["right"] + images[kind] == images["sent"]
    assert {kind for kind in ("crossed answer", "wrong answer") if images[kind]} == {kind}
    assert all(summary["by_protocol"][protocol]["images"][kind] for protocol in ("grpc", "http"))
    assert f"1 images: {kind}: " in " ".join(summary["failures_in_words"])


def test_an_interrupt_ends_the_test_and_loses_no_answer(
    small_server: TritonServer, photos: Path, tmp_path: Path
) -> None:
    command = [
        sys.executable,
        "-m",
        "benchmarks.load",
        "--model",
        MODEL,
        "--run-time",
        "600",
        "--processes",
        "2",
    ]
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
    (path,) = tmp_path.glob("*/summary.json")
    images = json.loads(path.read_text(encoding="utf-8"))["all"]["images"]
    assert images["right"] > 0
    assert images["right"] + images["bad image refused"] == images["sent"]


def test_answers_after_the_deadline_are_late(
    run: Run, learnt: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("late") / "expected.json"
    path.write_text(json.dumps(learnt), encoding="utf-8")
    options = ["--run-time", "2", "--bad-share", "0", "--think-time", "0.1", "--batch-mix", "16=1"]
    status, summary = run(*options, "--deadline", "0.002", "--expected", str(path))
    assert status == 1
    for protocol in ("grpc", "http"):
        images = summary["by_protocol"][protocol]["images"]
        assert images["late"] == images["sent"] > 0
