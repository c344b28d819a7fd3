"""Measurements in turns, the check of the answers, and the goals' verdicts."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Mapping, Sequence

import pytest

from benchmarks.speed.bench import PeerError
from benchmarks.speed.compare import Comparison, require_equal, require_telling
from benchmarks.speed.goals import Goal, QuickReport
from benchmarks.speed.turns import Turns, order_of_turns, ratios_of, take_turns, values_of
from mlcls.model.catalog import OFFICIAL_MODELS

LCNET, RESNET = "PP-LCNet_x1_0_ML", "ResNet50_ML"
THRESHOLDS = (0.5,) * 4


def test_the_first_one_is_on_both_sides_of_every_other_one() -> None:
    assert list(order_of_turns("a", ["b", "c"], 2)) == ["a", "b", "a", "c", "a", "b", "a", "c", "a"]
    figures = iter((1.0, 2.0, 3.0))
    assert take_turns(lambda name: next(figures), "a", ["b"], 1) == [("a", 1.0), ("b", 2.0), ("a", 3.0)]


def test_a_ratio_is_of_neighbors_only() -> None:
    # the machine halves its speed after the first pair; medians of all would say 4 to 3
    turns: Turns = [("a", 8.0), ("b", 4.0), ("a", 4.0), ("c", 1.0), ("a", 4.0), ("b", 2.0)]
    assert ratios_of(turns, "a", "b") == [2.0, 1.0, 2.0]
    assert ratios_of(turns, "b", "a") == [0.5, 1.0, 0.5]
    assert ratios_of(turns, "a", "c") == [4.0, 4.0]
    assert ratios_of(turns, "b", "c") == []
    assert values_of(turns, "a") == [8.0, 4.0, 4.0]


def test_a_window_that_could_not_be_measured_is_left_out() -> None:
    turns: Turns = [("a", 8.0), ("b", None), ("a", 6.0), ("b", 3.0), ("a", 6.0), ("c", 0.0)]
    assert ratios_of(turns, "a", "b") == [2.0, 2.0]
    assert values_of(turns, "b") == [3.0]
    assert ratios_of(turns, "a", "c") == []


@pytest.mark.parametrize(
    ("kind", "values", "verdict"),
    [
        ("at least", [1.8], "met"),
        ("at least", [1.79], "missed"),
        ("above", [1.8], "missed"),
        ("above", [1.81], "met"),
        ("at most", [1.8], "met"),
        ("at most", [1.81], "missed"),
        ("at least", [1.0, 1.9, 2.0], "met"),
        ("at least", [1.0, 1.7, 9.0], "missed"),
        ("at least", [], "not measured"),
    ],
)
def test_the_median_decides_a_goal(kind: str, values: list[float], verdict: str) -> None:
    assert Goal("what", kind, 1.8, " times", values).verdict == verdict  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("answer", "is_equal"),
    [
        ({0: 0.9, 1: 0.7}, True),
        ({1: 0.7009, 0: 0.8991}, True),  # the order is not part of an answer
        ({0: 0.9, 1: 0.7, 2: 0.5005}, True),  # at the threshold
        ({0: 0.9, 1: 0.702}, False),
        ({0: 0.9}, False),
        ({0: 0.9, 1: 0.7, 2: 0.6}, False),
        ({0: 0.9, 1: 0.7, 9: 0.6}, False),  # a class id that the model does not have
        ({0: 0.9, 1: math.nan}, False),
        ({}, False),
    ],
)
def test_answers_are_equal_within_the_tolerance(answer: Mapping[int, float], is_equal: bool) -> None:
    expected: Sequence[Mapping[int, float]] = [{0: 0.9, 1: 0.7}]
    if is_equal:
        require_equal("peer", expected, [answer], THRESHOLDS)
    else:
        with pytest.raises(PeerError, match="peer: expected the served model's answer to photo 0"):
            require_equal("peer", expected, [answer], THRESHOLDS)


def test_swapped_and_missing_answers_are_caught() -> None:
    expected: Sequence[Mapping[int, float]] = [{0: 0.9}, {1: 0.7}]
    with pytest.raises(PeerError, match="photo 0"):
        require_equal("peer", expected, expected[::-1], THRESHOLDS)
    with pytest.raises(PeerError, match="expected 2 answers"):
        require_equal("peer", expected, expected[:1], THRESHOLDS)


@pytest.mark.parametrize("answers", [[], [{0: 0.9}], [{}, {}], [{0: 0.9}, {0: 0.9001}]])
def test_photos_that_are_all_answered_alike_prove_nothing(answers: list[Mapping[int, float]]) -> None:
    with pytest.raises(PeerError, match="all alike"):
        require_telling(answers)
    require_telling([{0: 0.9}, {0: 0.8}])


def make_comparison(served: float, paddlex: float, engine: float) -> Comparison:
    others = {"paddlex --serve": paddlex, "bare process": 50.0, "OpenVINO": engine, "ONNX Runtime": engine / 2}
    turns: Turns = [("served", served)]
    for name, rate in others.items():
        turns += [(name, rate), ("served", served)]
    return Comparison(8, turns)


def make_report() -> QuickReport:
    one, other = make_comparison(48.0, 24.0, 49.0), make_comparison(6.0, 5.0, 8.0)
    one.latency_turns = [("served", 20.0), ("PaddleX predict()", 40.0)]
    one.preprocess_ms = [6.0, 5.0]
    return QuickReport((LCNET, RESNET), {LCNET: one, RESNET: other}, [2.0], [], [500.0])


def test_goals_follow_from_the_comparisons() -> None:
    report = make_report()
    medians = [statistics.median(goal.values) if goal.values else None for goal in report.goals()]
    assert medians == pytest.approx([2.0, 1.2, 0.75, 0.96, 0.5, 5.5, 2.0, None, 500.0])
    verdicts = ["met", "met", "missed", "met", "met", "met", "met", "not asked for", "met"]
    assert [goal.verdict for goal in report.goals()] == verdicts
    assert report.is_complete()
    text = report.format()
    assert f"| at least 0.95 times | 0.75 times ({RESNET}, OpenVINO) | 0.75 to 0.75 | missed |" in text
    assert f"| {RESNET} | 8 | paddlex --serve | 5 | - | 1.20 times | 1.2 to 1.2 |" in text
    assert json.dumps(dataclasses.asdict(report), allow_nan=False)


def test_what_fails_is_an_error_and_no_figure() -> None:
    report = make_report()
    report.comparisons[LCNET].preprocess_ms = []
    del report.comparisons[RESNET]
    verdicts = [goal.verdict for goal in report.goals()]
    assert [verdicts[index] for index in (1, 2, 5)] == ["not measured"] * 3
    assert not report.is_complete()
    assert QuickReport(tuple(OFFICIAL_MODELS)).goals()[7].verdict == "not measured"
    assert f"| - ({RESNET} could not be compared) | - | not measured |" in report.format()


def test_a_peer_that_failed_makes_a_run_incomplete() -> None:
    report = make_report()
    report.comparisons[RESNET].errors["LitServe"] = "was not ready"
    assert not report.is_complete()
    assert f"- {RESNET}, LitServe: was not ready" in report.format()
