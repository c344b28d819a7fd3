"""The soak run's plan, what it makes of the outcomes, and that it can fail."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.endurance.soak import load as soak_load
from benchmarks.endurance.soak.faults import FAULTS, plan_faults
from benchmarks.endurance.soak.load import Outcome, Photo, SoakLoad, ask_once
from benchmarks.endurance.soak.report import FaultRecord, SoakRecord, describe, draw, find_failures, summarize

PHOTO = Photo(b"photo", {"cat": np.array([0.9, 0.1], np.float32)}, {"cat": ["fur"]})


def outcome(ended_s: float, tries: int = 1, kind: str = "answered") -> Outcome:
    return Outcome("cat", ended_s - 0.5, ended_s, tries, kind)


RECORD = SoakRecord(
    begin_s=100.0,
    end_s=200.0,
    rate=0.06,
    sustainable=0.1,
    sent=6,
    outcomes=[outcome(101), outcome(112), outcome(117, 3), outcome(119, 2), outcome(140), outcome(151, 2)],
    errors={"UNAVAILABLE: gone": 4},
    faults=[FaultRecord("killed engine", 110.0), FaultRecord("killed tritonserver", 150.0)],
    memory=[(100.0 + step, 500_000_000 + step) for step in range(0, 100, 5)],
    exit_status=0,
)


@pytest.mark.parametrize("seed", [1, 7])
def test_each_fault_is_done_as_often_as_the_others(seed: int) -> None:
    plan = plan_faults(1800, 2 * len(FAULTS), seed)
    assert Counter(name for _, name in plan) == dict.fromkeys(FAULTS, 2)
    times = [time_s for time_s, _ in plan]
    assert times == sorted(times)
    assert times[0] > 0
    assert times[-1] < 1800 * 6 / 7
    assert plan == plan_faults(1800, 2 * len(FAULTS), seed)
    assert plan != plan_faults(1800, 2 * len(FAULTS), seed + 1)


def test_figures() -> None:
    summary = summarize(RECORD, {"seed": 7})
    assert summary["requests"] == {
        "sent": 6,
        "answered": 6,
        "answered_at_once": 3,
        "answered_on_retry": 3,
        "refused": 0,
        "wrong": 0,
        "lost": 0,
    }
    assert summary["faults"] == [
        {"fault": "killed engine", "at_s": 10.0, "requests_retried": 2, "recovered_after_s": 9.0},
        {"fault": "killed tritonserver", "at_s": 50.0, "requests_retried": 1, "recovered_after_s": 1.0},
    ]
    assert find_failures(summary) == []
    assert "| killed engine | 1 | 2 | 9.0 s |" in describe(summary)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sent": 7}, "1 requests were lost"),
        ({"outcomes": [*RECORD.outcomes[1:], outcome(120, 9, "lost")]}, "1 requests were lost"),
        ({"outcomes": [*RECORD.outcomes[1:], outcome(120, 1, "wrong")]}, "1 requests were wrong"),
        ({"outcomes": [*RECORD.outcomes[1:], outcome(120, 9, "refused")]}, "1 requests were refused"),
        ({"exit_status": 1}, "mlcls serve exited with 1 after SIGTERM"),
    ],
)
def test_what_must_not_be(change: dict[str, Any], words: str) -> None:
    failures = find_failures(summarize(dataclasses.replace(RECORD, **change), {}))
    assert len(failures) == 1
    assert failures[0].startswith(words)


def test_the_picture(tmp_path: Path) -> None:
    draw(RECORD, tmp_path / "soak.png")
    assert (tmp_path / "soak.png").read_bytes().startswith(b"\x89PNG")


def client(scores: list[float], names: str = '["fur"]') -> Any:
    tensors = {
        "scores": np.array([scores], np.float32),
        "result": np.array([[f'{{"label_names": {names}}}'.encode()]], dtype=np.object_),
    }
    return SimpleNamespace(infer=lambda *_, **__: SimpleNamespace(as_numpy=tensors.__getitem__))


def test_answers_are_held_against_their_image() -> None:
    assert ask_once(client([0.9, 0.1]), PHOTO, "cat") is None
    assert ask_once(client([0.9, 0.2]), PHOTO, "cat") == "scores differ by 0.1"
    assert ask_once(client([float("nan"), 0.1]), PHOTO, "cat") == "scores differ by nan"
    assert ask_once(client([0.9, 0.1], '["feather"]'), PHOTO, "cat") == "labels ['feather']"


def test_a_request_is_sent_again_until_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak_load, "REQUEST_TIMEOUT_S", 0.2)
    monkeypatch.setattr(soak_load, "FIRST_PAUSE_S", 0.02)
    load = SoakLoad("localhost:1", [PHOTO], ["cat"], 1.0, 1)
    problems: list[Exception] = [ConnectionError("gone 1"), ConnectionError("gone 2")]

    def infer(*_: Any, **__: Any) -> Any:
        if problems:
            raise problems.pop()
        return client([0.9, 0.1]).infer()

    answered = load._ask(SimpleNamespace(infer=infer), PHOTO, "cat")
    assert (answered.kind, answered.tries) == ("answered", 3)
    assert load.errors == {"ConnectionError: gone N": 2}

    def refuse(*_: Any, **__: Any) -> Any:
        raise ConnectionError("gone")

    assert load._ask(SimpleNamespace(infer=refuse), PHOTO, "cat").kind == "refused"

    def wait(*_: Any, **__: Any) -> Any:
        error = RuntimeError("Deadline Exceeded")
        error.status = lambda: "StatusCode.DEADLINE_EXCEEDED"  # type: ignore[attr-defined]
        raise error

    assert load._ask(SimpleNamespace(infer=wait), PHOTO, "cat").kind == "lost"
