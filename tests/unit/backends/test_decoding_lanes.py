"""Requests with large images wait for one another, and small ones do not wait."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator

import pytest

from mlcls.backends.decoding_lanes import LANES_FROM_S, DecodingLanes, Job
from mlcls.errors import OverloadedError

SMALL_S, MEDIUM_S, LARGE_S = LANES_FROM_S[0], LANES_FROM_S[-1], 8.0
LONG_S = 1e6
PATIENCE_S = 60.0


@pytest.fixture
def lanes() -> Iterator[DecodingLanes]:
    lanes = DecodingLanes(3)
    yield lanes
    lanes.close()


class Work:
    """Jobs that note what they do, piece by piece."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.threads: dict[str, int] = {}
        self.niceness: dict[str, int] = {}
        self.errors: dict[str, OverloadedError] = {}

    def job(self, name: str, pieces: int = 1, wait: Callable[[], object] = lambda: None) -> Job:
        left = pieces

        def run(error: OverloadedError | None) -> bool:
            nonlocal left
            if error is not None:
                self.errors[name] = error
                return False
            wait()
            self.done.append(name)
            self.threads[name] = threading.get_ident()
            self.niceness[name] = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
            left -= 1
            return left > 0

        return run


def test_small_requests_do_not_wait_for_large_ones(lanes: DecodingLanes) -> None:
    work, held = Work(), threading.Event()
    lanes.run(work.job("large", wait=lambda: held.wait(PATIENCE_S)), LARGE_S, LONG_S)
    lanes.run(work.job("small", pieces=2), SMALL_S, LONG_S)
    assert work.done == ["small", "small"], "done when the call returns"
    medium_done = threading.Event()
    lanes.run(work.job("medium", wait=medium_done.set), MEDIUM_S, LONG_S)
    assert medium_done.wait(PATIENCE_S), "each size has its own lane"
    held.set()
    lanes.close()
    assert sorted(work.done) == ["large", "medium", "small", "small"]
    assert work.threads["small"] == threading.get_ident()
    assert len(set(work.threads.values())) == 3
    assert work.niceness["small"] < work.niceness["medium"] < work.niceness["large"]


def test_the_request_that_asks_for_least_goes_first_image_by_image(lanes: DecodingLanes) -> None:
    work, began, held = Work(), threading.Event(), threading.Event()

    def wait() -> None:
        began.set()
        held.wait(PATIENCE_S)

    lanes.run(work.job("stranger", pieces=3, wait=wait), LARGE_S, LONG_S)
    assert began.wait(PATIENCE_S)
    lanes.run(work.job("another", pieces=2), LARGE_S, LONG_S)
    lanes.run(work.job("photo"), 2 * MEDIUM_S, LONG_S)
    held.set()
    lanes.close()
    assert work.done == ["stranger", "photo", "stranger", "stranger", "another", "another"]


def test_a_defect_costs_its_own_request_alone(lanes: DecodingLanes, capfd: pytest.CaptureFixture[str]) -> None:
    def fail(_: OverloadedError | None) -> bool:
        raise ZeroDivisionError

    work = Work()
    lanes.run(fail, LARGE_S, LONG_S)
    lanes.run(work.job("next"), LARGE_S, LONG_S)
    lanes.close()
    assert work.done == ["next"]
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_what_waits_is_limited_in_number_and_time(lanes: DecodingLanes) -> None:
    work, began, held = Work(), threading.Event(), threading.Event()

    def wait() -> None:
        began.set()
        held.wait(PATIENCE_S)

    lanes.run(work.job("first", wait=wait), LARGE_S, LONG_S)
    assert began.wait(PATIENCE_S)
    for name, timeout_s in (("second", LONG_S), ("impatient", 0.0), ("third", LONG_S), ("too many", LONG_S)):
        lanes.run(work.job(name), LARGE_S, timeout_s)
    assert list(work.errors) == ["too many"]
    assert "3 requests with large images are waiting" in str(work.errors["too many"])
    held.set()
    lanes.close()
    assert work.done == ["first", "second", "third"]
    assert "waited too long" in str(work.errors["impatient"])
