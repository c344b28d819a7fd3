"""Measurements in turns, the goals' verdicts and the report of the quick benchmark."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

import pytest

from benchmarks.speed import goals
from benchmarks.speed.compare import require_equal, require_telling
from benchmarks.speed.contenders import Comparison
from benchmarks.speed.goals import GOALS, GoalResult, format_goals
from benchmarks.speed.peers.contender import Load, PeerError
from benchmarks.speed.quick_report import QuickReport
from benchmarks.speed.turns import Spread, Turns, Window, order_of_turns, take_turns
from mlcls.errors import MlclsError
from mlcls.model.catalog import OFFICIAL_MODELS

LCNET, RESNET = "PP-LCNet_x1_0_ML", "ResNet50_ML"
THRESHOLDS = (0.5,) * 4


def make_turns(*windows: tuple[str, float]) -> Turns:
    return Turns(tuple(Window(*window) for window in windows))


def test_the_first_one_is_on_both_sides_of_every_other_one() -> None:
    assert list(order_of_turns("a", ["b", "c"], 2)) == ["a", "b", "a", "c", "a", "b", "a", "c", "a"]
    assert list(order_of_turns("a", ["b"], 1)) == ["a", "b", "a"]


def test_windows_are_measured_in_that_order() -> None:
    measured: list[str] = []

    def measure(name: str) -> float:
        measured.append(name)
        return float(len(measured))

    turns = take_turns(measure, "a", ["b"], 2)
    assert measured == ["a", "b", "a", "b", "a"]
    assert [window.value for window in turns.windows] == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_a_ratio_is_of_neighbors_only() -> None:
    # the machine halves its speed after the first pair; medians of all would say 4 to 3
    turns = make_turns(("a", 8.0), ("b", 4.0), ("a", 4.0), ("c", 1.0), ("a", 4.0), ("b", 2.0))
    assert turns.ratio("a", "b").values == (2.0, 1.0, 2.0)
    assert turns.ratio("b", "a").values == (0.5, 1.0, 0.5)
    assert turns.ratio("a", "c").values == (4.0, 4.0)
    assert turns.values("a").values == (8.0, 4.0, 4.0)
    with pytest.raises(MlclsError, match="got none"):
        turns.ratio("b", "c")


def test_a_window_that_could_not_be_measured_is_left_out() -> None:
    turns = make_turns(("a", 8.0), ("b", math.nan), ("a", 6.0), ("b", 3.0))
    assert turns.ratio("a", "b").values == (2.0,)
    assert turns.values("b").values == (3.0,)
    dead = make_turns(("a", 8.0), ("b", 0.0), ("a", 8.0))
    with pytest.raises(MlclsError, match="got none"):
        dead.ratio("a", "b")


def test_spread() -> None:
    spread = Spread((3.0, 1.0, 2.0, 10.0))
    assert (spread.median, spread.lowest, spread.highest) == (2.5, 1.0, 10.0)


@pytest.mark.parametrize(
    ("goal", "value", "verdict"),
    [
        (goals.THROUGHPUT, 1.8, "met"),
        (goals.THROUGHPUT, 1.79, "missed"),
        (goals.EACH_AGAINST_PADDLEX, 1.0, "missed"),
        (goals.EACH_AGAINST_PADDLEX, 1.01, "met"),
        (goals.LATENCY, 0.85, "met"),
        (goals.LATENCY, 0.86, "missed"),
        (goals.MEMORY, math.nan, "missed"),
    ],
)
def test_verdicts(goal: goals.Goal, value: float, verdict: str) -> None:
    assert GoalResult(goal, Spread((value,))).verdict == verdict


def test_the_median_decides_a_goal() -> None:
    assert GoalResult(goals.THROUGHPUT, Spread((1.0, 1.9, 2.0))).verdict == "met"
    assert GoalResult(goals.THROUGHPUT, Spread((1.0, 1.7, 9.0))).verdict == "missed"


def test_the_table_of_goals() -> None:
    rows = [
        GoalResult(goals.PREPROCESS, Spread((6.5, 6.0, 7.5))),
        GoalResult(goals.READY_SIX, None, asked=False),
        GoalResult(goals.LATENCY, None, "no such peer"),
    ]
    lines = format_goals(rows).splitlines()
    assert lines[2].endswith("| at most 7 ms | 6.5 ms | 6 to 7.5 | met |")
    assert lines[3].endswith("| at most 25 s | - | - | not asked for |")
    assert lines[4].endswith("| at most 0.85 times | - (no such peer) | - | not measured |")


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


def make_comparison(name: str, served: float, paddlex: float, engine: float) -> Comparison:
    turns = make_turns(
        *(("served", served), ("paddlex --serve", paddlex), ("served", served), ("bare process", 50.0)),
        *(("served", served), ("OpenVINO", engine), ("served", served), ("Paddle", engine / 2)),
    )
    return Comparison(name, Load(8, 1.0, 0.2), turns, engines=["OpenVINO", "Paddle"])


def make_report() -> QuickReport:
    report = QuickReport({"cores": "2"}, (LCNET, RESNET))
    report.comparisons = {
        LCNET: make_comparison(LCNET, 48.0, 24.0, 49.0),
        RESNET: make_comparison(RESNET, 6.0, 5.0, 8.0),
    }
    report.comparisons[LCNET].latency_turns = make_turns(("served", 20.0), ("PaddleX predict()", 40.0))
    report.comparisons[LCNET].pixel_digests = report.pixel_digests = ["a", "b"]
    report.preprocess_ms, report.memory_mb, report.ready_one_s = [6.0, 5.0], [500.0], [2.0]
    return report


def test_goals_follow_from_the_comparisons() -> None:
    report = make_report()
    results = {result.goal.key: result for result in report.goal_results()}
    assert list(results) == [goal.key for goal in GOALS]
    medians = {key: result.measured.median for key, result in results.items() if result.measured}
    assert medians == pytest.approx(
        {
            "throughput": 2.0,
            "each_against_paddlex": 1.2,
            "each_against_engine": 0.75,
            "bare_process": 0.96,
            "latency": 0.5,
            "preprocess": 5.5,
            "ready_one": 2.0,
            "memory": 500.0,
        }
    )
    assert results["each_against_engine"].note == f"{RESNET}, OpenVINO"
    assert results["ready_six"].verdict == "not asked for"
    assert report.is_complete()


def test_what_fails_is_an_error_and_no_figure() -> None:
    report = make_report()
    report.pixel_digests = ["a", "c"]
    del report.comparisons[RESNET]
    verdicts = {result.goal.key: result.verdict for result in report.goal_results()}
    assert verdicts["preprocess"] == "not measured"
    assert verdicts["each_against_paddlex"] == verdicts["each_against_engine"] == "not measured"
    assert not report.is_complete()
    assert "pixels of 1 of 2 photos are not PaddleX's" in report.to_markdown()


def test_a_peer_that_failed_makes_a_run_incomplete() -> None:
    report = make_report()
    report.comparisons[RESNET].errors["LitServe"] = "was not ready"
    assert not report.is_complete()
    assert f"- {RESNET}, LitServe: was not ready" in report.to_markdown()


def test_the_json_file_has_all_raw_figures_and_no_nan() -> None:
    report = make_report()
    broken = make_turns(("served", 6.0), ("paddlex --serve", math.nan))
    report.comparisons[RESNET].turns = broken
    document = json.loads(report.to_json(), parse_constant=lambda text: pytest.fail(f"{text} is not JSON"))
    windows = document["comparisons"][RESNET]["turns"]["windows"]
    assert windows == [{"name": "served", "value": 6.0}, {"name": "paddlex --serve", "value": None}]
    throughput = document["goals"][0]
    assert throughput["values"] == [2.0, 2.0]
    assert throughput["verdict"] == "met"
    assert document["comparisons"][LCNET]["load"]["concurrency"] == 8


def test_six_models_are_asked_for_only_where_all_are_measured() -> None:
    report = QuickReport({}, tuple(OFFICIAL_MODELS))
    verdicts = {result.goal.key: result.verdict for result in report.goal_results()}
    assert verdicts["ready_six"] == "not measured"
    assert not report.is_complete()
