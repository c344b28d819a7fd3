"""The fuzz run's own parts: the same seed sends the same, what is wrong is found, an interrupted run goes on."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from benchmarks.asking import ImageReply, Refusal, Reply
from benchmarks.endurance.fuzzing import library_fuzz
from benchmarks.endurance.fuzzing.campaign import Item, ServerProcesses, Verdict, compare, plan_request, save_request
from benchmarks.endurance.fuzzing.image_seeds import SIZE, make_good_images, make_seed_images
from benchmarks.endurance.fuzzing.library_fuzz import PARSERS, Parser, fuzz_parser
from benchmarks.endurance.fuzzing.mutations import MUTATIONS
from mlcls.images.decoding import decode_image
from mlcls.images.encoded_image import open_image
from mlcls.images.formats import FORMATS

SEEDS, GOOD = make_seed_images(), make_good_images()


def test_seeds_are_good_files_of_all_formats() -> None:
    for name, data in {**SEEDS, **GOOD}.items():
        assert decode_image(data).shape in ((*SIZE, 3), (*SIZE[::-1], 3)), name
    assert {open_image(data).format for data in SEEDS.values()} == set(FORMATS)
    assert all(name.split()[0] == open_image(data).format for name, data in SEEDS.items())


@pytest.mark.parametrize("name", MUTATIONS)
def test_each_mutation_changes_files_and_is_reproducible(name: str) -> None:
    changed = [MUTATIONS[name](random.Random(case), SEEDS[seed], SEEDS) for case, seed in enumerate(sorted(SEEDS))]
    again = [MUTATIONS[name](random.Random(case), SEEDS[seed], SEEDS) for case, seed in enumerate(sorted(SEEDS))]
    assert changed == again
    assert sum(data != SEEDS[seed] for data, seed in zip(changed, sorted(SEEDS), strict=True)) > len(SEEDS) / 2
    for data in (b"", b"\xff", b"\x89PNG\r\n\x1a\n", b"II*\0", b"RIFF\0\0\0\0WEBPVP8X"):  # what earlier mutations leave
        MUTATIONS[name](random.Random(1), data, SEEDS)


def test_requests_follow_from_the_seed() -> None:
    plans = [plan_request(7, number, SEEDS, GOOD) for number in range(50)]
    assert plans == [plan_request(7, number, SEEDS, GOOD) for number in range(50)]
    assert plans != [plan_request(8, number, SEEDS, GOOD) for number in range(50)]
    assert {len(plan) for plan in plans} >= {1, 2, 3, 4}
    assert any(item.is_good for item in plans[0] + plans[1] + plans[2])
    changed = {item.data for plan in plans for item in plan if not item.is_good}
    assert len(changed) > 100
    alike = sum(any(data[:4] == seed[:4] for seed in SEEDS.values()) for data in changed)
    assert alike > 0.6 * len(changed), "or nothing behind the first bytes would ever be tried"


ACCEPTED = Verdict("OK", scores=np.array([0.2, 0.8], np.float32))
OTHER = Verdict("OK", scores=np.array([0.9, 0.1], np.float32))
REFUSED = Verdict("truncated", "image: expected more")
ITEMS = [Item("first", b"1", False), Item("second", b"2", True), Item("third", b"3", False)]


def answer(rows: list[list[float]], statuses: list[str]) -> Reply:
    return [ImageReply(np.array(row, np.float32), {}, status) for row, status in zip(rows, statuses, strict=True)]


def refusal(text: str) -> Refusal:
    return Refusal("INVALID_ARGUMENT", text)


NONE = [-1.0, -1.0]
MIXED, BAD = [ACCEPTED, OTHER, REFUSED], [REFUSED]


@pytest.mark.parametrize(
    ("expected", "reply", "faults"),
    [
        (MIXED, answer([[0.2, 0.8], [0.9, 0.1], NONE], ["OK", "OK", REFUSED.text]), 0),
        (MIXED, answer([[0.20005, 0.8], [0.9, 0.1], NONE], ["OK", "OK", REFUSED.text]), 0),
        (MIXED, answer([[0.9, 0.1], [0.2, 0.8], NONE], ["OK", "OK", REFUSED.text]), 2),  # exchanged
        (MIXED, answer([[0.2, 0.8], [0.9, 0.1], [0.5, 0.5]], ["OK", "OK", REFUSED.text]), 1),
        (MIXED, answer([[0.2, 0.8], [0.9, 0.1], NONE], ["OK", "OK", "image: expected less"]), 1),
        (MIXED, answer([NONE, [0.9, 0.1], NONE], ["OK", "OK", REFUSED.text]), 1),
        (MIXED, answer([[np.inf, 0.8], [0.9, 0.1], NONE], ["OK", "OK", REFUSED.text]), 1),
        (MIXED, answer([[0.2, 0.8], [0.9, 0.1], [0.2, 0.8]], ["OK", "OK", "OK"]), 1),
        (MIXED, answer([[0.2, 0.8]], ["OK"]), 1),
        (MIXED, refusal("none of the 3 images can be decoded"), 1),
        (BAD, refusal(f"[request id: 1] {REFUSED.text}"), 0),
        (BAD, refusal("something else"), 1),
        (BAD, answer([[0.2, 0.8]], ["OK"]), 1),
    ],
)
def test_answers_are_compared(expected: list[Verdict], reply: Reply, faults: int) -> None:
    assert len(compare(ITEMS[: len(expected)], expected, reply)) == faults


def test_images_of_a_problem_are_kept(tmp_path: Path) -> None:
    folder = save_request(tmp_path, 12, ITEMS)
    assert [(folder / f"{index:02}.bin").read_bytes() for index in range(3)] == [b"1", b"2", b"3"]
    assert (folder / "labels.txt").read_text().splitlines() == ["first", "second", "third"]


def test_a_process_that_ended_is_found() -> None:
    code = "import subprocess, sys; subprocess.Popen(['sleep', '60']); print('.', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        processes = ServerProcesses(parent.pid)
        assert processes.find_lost() == []
        (child,) = psutil.Process(parent.pid).children()
        child.kill()  # nobody waits for it, as nobody does for a stub
        until = time.monotonic() + 10
        while not (lost := processes.find_lost()) and time.monotonic() < until:
            time.sleep(0.01)
        assert lost == ["sleep 60"]
        assert processes.find_lost() == []
        parent.kill()
        parent.wait(10)
        assert processes.find_lost() == ["tritonserver"]


@pytest.mark.parametrize("name", PARSERS)
def test_parsers_raise_nothing_but_errors_of_mlcls(name: str) -> None:
    assert fuzz_parser(name, 60, seed=20) == []


def test_a_parser_that_raises_something_else_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def parse(data: bytes, folder: Path) -> str | None:
        if len(data) % 2:
            raise KeyError("odd")
        (folder / "outside").write_bytes(data)
        return "unexpected files" if len(data) % 3 == 0 else None

    parser = Parser({"text": b"a: 1\nb: [1, 2]\n"}, parse)
    monkeypatch.setattr(library_fuzz, "PARSERS", {"planted": parser})
    faults = fuzz_parser("planted", 40, seed=1)
    assert faults
    assert any("KeyError: 'odd'" in fault for fault in faults)
    assert any("unexpected files" in fault for fault in faults)
    assert faults == fuzz_parser("planted", 40, seed=1)
