"""The asker's outcomes, the soak run's plan, what it makes of the outcomes, and that it can fail."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import pytest

from benchmarks.asking import ImageReply
from benchmarks.endurance import asker as asker_module
from benchmarks.endurance.asker import Asker, Outcome, Place, Reading
from benchmarks.endurance.faults import FAULTS, plan_faults
from benchmarks.endurance.identity_model import make_image, make_spec
from benchmarks.endurance.overload import is_refusal
from benchmarks.endurance.questions import Question
from benchmarks.endurance.soak import SoakRecord

# Its threshold gives it no label.
QUESTION = Question((7,), (make_image(7, "PNG"),), 1.0)
RIGHT: Reading = ([ImageReply(None, {"class_ids": [], "scores": [], "label_names": []}, "OK")], None)
LABELS = list(make_spec(1).labels[:1])
WRONG: Reading = ([ImageReply(None, {"class_ids": [0], "scores": [1.0], "label_names": LABELS}, "OK")], None)


def outcome(ended_s: float, tries: int = 1, kind: str = "answered") -> Outcome:
    return Outcome(ended_s - 0.5, ended_s, tries, 2, kind, "why")


RECORD = SoakRecord(
    begin_s=100.0,
    rates=(0.06, 0.1),
    sent=6,
    outcomes=[outcome(101), outcome(112), outcome(117, 3), outcome(119, 2), outcome(140), outcome(151, 2)],
    errors=Counter({"UNAVAILABLE: gone": 4}),
    faults=[(110.0, "killed engine"), (150.0, "killed tritonserver")],
    memory_mb=[500.0 + step for step in range(20)],
    exit_status=0,
)


@pytest.mark.parametrize("seed", [1, 7])
def test_each_fault_is_done_as_often_as_the_others(seed: int) -> None:
    plan = plan_faults(1800, 2 * len(FAULTS), seed)
    assert Counter(name for _, name in plan) == dict.fromkeys(FAULTS, 2)
    times = [time_s for time_s, _ in plan]
    assert times == sorted(times)
    assert 0 < times[0] < times[-1] < 1800 * 6 / 7
    assert plan == plan_faults(1800, 2 * len(FAULTS), seed) != plan_faults(1800, 2 * len(FAULTS), seed + 1)


def test_figures() -> None:
    text = RECORD.format()
    assert RECORD.find_failures() == []
    assert "6 requests at 0.1/s (0.1/s measured): {'answered': 6}, 3 answered on the first try; 12 images" in text
    assert "memory (PSS): 500 MB at first, 518 MB at last, 519 MB at most" in text
    assert "| killed engine | 1 | 2 | 9 s |\n| killed tritonserver | 1 | 1 | 1 s |" in text
    crashed = dataclasses.replace(RECORD, crashes=["tritonserver ended with signal 11"]).format()
    assert "Ended by itself: tritonserver ended with signal 11\n\nPassed." in crashed
    assert text.endswith("4 x UNAVAILABLE: gone\n\nPassed.\n")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sent": 7}, "1 requests were lost, for example: not even ended"),
        ({"outcomes": [*RECORD.outcomes[1:], outcome(120, 9, "lost")]}, "1 requests were lost, for example: why"),
        ({"outcomes": [*RECORD.outcomes[1:], outcome(120, 1, "wrong")]}, "1 requests were wrong"),
        ({"outcomes": [*RECORD.outcomes[1:], outcome(120, 9, "refused")]}, "1 requests were refused"),
        ({"sent": 0, "outcomes": []}, "no request was answered"),
        ({"exit_status": 1}, "mlcls serve exited with 1 after SIGTERM"),
    ],
)
def test_what_must_not_be(change: dict[str, Any], words: str) -> None:
    record = dataclasses.replace(RECORD, **change)
    (failure,) = record.find_failures()
    assert failure.startswith(words)
    assert f"FAILED: {failure}" in record.format()


class Replies:
    """Replies and errors, one after the other; the last one comes again and again."""

    def __init__(self, *replies: Any) -> None:
        self._replies = list(replies)

    def __call__(self, question: Question) -> Reading:
        reply = self._replies.pop(0) if len(self._replies) > 1 else self._replies[0]
        if isinstance(reply, Exception):
            raise reply
        answer: Reading = reply
        return answer


def late() -> Exception:
    error = RuntimeError("Deadline Exceeded")
    error.status = lambda: "StatusCode.DEADLINE_EXCEEDED"  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize(
    ("replies", "kind", "tries"),
    [
        ((RIGHT,), "answered", 1),
        ((ConnectionError("gone 1"), ConnectionError("gone 2"), RIGHT), "answered", 3),
        ((WRONG,), "wrong", 1),
        (((None, None),), "given up", 1),
        ((ConnectionError("gone"),), "refused", None),
        ((late(),), "lost", None),
        ((TimeoutError("timed out"),), "lost", None),
    ],
)
def test_a_request_is_sent_again_until_its_time_is_over(
    monkeypatch: pytest.MonkeyPatch, replies: tuple[Any, ...], kind: str, tries: int | None
) -> None:
    monkeypatch.setattr(asker_module, "FIRST_PAUSE_S", 0.01)
    asker = Asker(Place("localhost:1", "localhost:1", ""), ["m"], 1, patience_s=0.2)
    found = asker.ask_until_answered(Replies(*replies), QUESTION)
    assert found.kind == kind
    assert found.tries == tries or (tries is None and found.tries > 1)
    if found.tries == 3:
        assert asker.errors == {"ConnectionError: gone N": 2}


def test_what_an_overloaded_server_may_say() -> None:
    assert is_refusal("refused", "UNAVAILABLE: Exceeds maximum queue size")
    assert is_refusal("lost", "DEADLINE_EXCEEDED: Deadline Exceeded")
    assert not is_refusal("refused", "INTERNAL: Stub process is not healthy")
    assert not is_refusal("wrong", "UNAVAILABLE")
