"""The load test's counts, curves of users, summary and verdict."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks.load.locustfiles.curves import Ramp, Soak, Spike, choose_curve
from benchmarks.load.locustfiles.outcomes import FAULTS, Kind, Tally, worst
from benchmarks.load.report import UsageSample, draw_load, format_table, is_fit, make_timeline, summarize


def answered(*kinds: Kind, latency_s: float = 0.1, now_s: float = 100.5, protocol: str = "grpc") -> Tally:
    tally = Tally()
    tally.note_sent(protocol, len(kinds))
    tally.note_answer(protocol, list(kinds), latency_s, now_s)
    return tally


def test_percentiles_are_within_one_percent() -> None:
    latencies_s = np.random.default_rng(0).lognormal(-2, 1, 5000)
    tally = Tally()
    for number, latency_s in enumerate(latencies_s):
        tally.note_answer(("grpc", "http")[number % 2], [Kind.RIGHT], latency_s, 100.0 + number % 3)
    for percent in (50, 95, 99):
        assert tally.percentile_ms(percent) == pytest.approx(np.percentile(latencies_s, percent) * 1e3, rel=0.02)
        grpc = np.percentile(latencies_s[::2], percent) * 1e3
        assert tally.percentile_ms(percent, "grpc") == pytest.approx(grpc, rel=0.02)
        last = np.percentile(latencies_s[2::3], percent) * 1e3
        assert tally.percentiles_by_bin_ms([percent])[102] == [pytest.approx(last, rel=0.02)]


def test_only_right_answers_have_a_latency() -> None:
    tally = answered(Kind.UNAVAILABLE, latency_s=0.001)
    tally.add(answered(Kind.REFUSED, latency_s=0.001).export())
    assert np.isnan(tally.percentile_ms(50))
    tally.add(answered(Kind.REFUSED, Kind.RIGHT, latency_s=0.2).export())
    assert tally.percentile_ms(50) == pytest.approx(200, rel=0.01)


def test_a_request_is_the_worst_of_its_images() -> None:
    assert worst([Kind.REFUSED, Kind.RIGHT]) is Kind.RIGHT
    assert worst([Kind.RIGHT, Kind.UNAVAILABLE]) is Kind.UNAVAILABLE
    assert worst([Kind.LATE, Kind.WRONG, Kind.RIGHT]) is Kind.WRONG
    assert worst([Kind.REFUSED]) is Kind.REFUSED


def test_tallies_of_several_processes_add_up_and_none_counts_twice() -> None:
    worker, master = answered(Kind.RIGHT, Kind.WRONG), Tally()
    worker.note_detail("one")
    for _ in range(2):
        master.add(json.loads(json.dumps(worker.take())))
    assert master.count_images(Kind.RIGHT) == master.count_images(Kind.WRONG) == 1
    assert master.count_requests(Kind.WRONG, "grpc") == 1
    assert master.count_requests(Kind.WRONG, "http") == 0
    assert master.count_sent("images") == 2
    assert master.details == ["one"]


def test_what_was_sent_and_never_heard_of_again_is_unfinished() -> None:
    tally = answered(Kind.RIGHT)
    assert tally.count_unfinished() == 0
    assert is_fit(tally)
    tally.note_sent("http", 4)
    assert tally.count_unfinished() == tally.count_unfinished("http") == 4
    assert not is_fit(tally)


@pytest.mark.parametrize("kind", FAULTS)
def test_one_fault_is_one_too_many(kind: Kind) -> None:
    tally = answered(*[Kind.RIGHT] * 31, kind)
    assert not is_fit(tally)


def test_refusals_of_a_full_server_are_allowed_but_not_nothing_else() -> None:
    assert is_fit(answered(Kind.RIGHT, Kind.REFUSED, Kind.UNAVAILABLE))
    assert not is_fit(answered(Kind.REFUSED, Kind.UNAVAILABLE))


def test_summary_table_and_picture() -> None:
    tally = answered(Kind.RIGHT, Kind.RIGHT, latency_s=0.1, now_s=100.5)
    tally.add(answered(Kind.UNAVAILABLE, protocol="http", now_s=103.0).export())
    usage = [UsageSample(100.2, 500_000_000, 0.0), UsageSample(102.9, 700_000_000, 1.5)]
    summary = json.loads(json.dumps(summarize(tally, [(99.9, 0), (100.1, 3), (102.0, 5)], usage, 1)))
    assert summary["fit"] is True
    assert summary["all"]["images"]["sent"] == 3
    assert summary["by_protocol"]["http"]["images"]["unavailable"] == 1
    assert summary["by_protocol"]["http"]["p50_ms"] is None
    assert summary["server"]["memory_peak_bytes"] == 700_000_000
    rows = summary["timeline"]
    assert [row["users"] for row in rows] == [3, 3, 5, 5]
    assert [row["right_per_s"] for row in rows] == [2, 0, 0, 0]
    assert [row["memory_bytes"] for row in rows] == [500_000_000, 500_000_000, 700_000_000, 700_000_000]
    assert rows[3]["failures_per_s"] == {"unavailable": 1.0}
    lines = {line[:26].strip(): line[26:].split() for line in format_table(summary).splitlines()}
    assert lines["answered right"] == ["2", "2", "0"]
    assert lines["queue full"] == ["1", "0", "1"]
    assert lines["wrong answer"] == ["0", "0", "0"]
    assert lines["p99 ms of right ones"][2] == "-"
    watched, unwatched = draw_load(rows, "title"), draw_load(make_timeline(tally, [], []), "title")
    assert watched.startswith(b"\x89PNG")
    assert unwatched.startswith(b"\x89PNG")
    assert watched != unwatched


def test_nothing_at_all_is_no_success() -> None:
    summary = summarize(Tally(), [], [], None)
    assert summary["fit"] is False
    assert summary["timeline"] == []
    format_table(summary)
    draw_load([], "nothing")


def test_curves_of_users() -> None:
    ramp = Ramp(users=10, run_time_s=100, steps=4)
    assert [ramp.users_at(at) for at in (0, 24.9, 25, 50, 75, 99.9, 100)] == [3, 3, 5, 8, 10, 10, None]
    soak = Soak(users=7, run_time_s=7200)
    assert [soak.users_at(at) for at in (0, 7199, 7200)] == [7, 7, None]
    spike = Spike(users=3, run_time_s=90)
    assert [spike.users_at(at) for at in (0, 29, 30, 59, 60, 89, 90)] == [3, 3, 30, 30, 3, 3, None]
    assert choose_curve("spike", 3, 90, 5, 2.0) == Spike(3, 90, 2.0)
    assert choose_curve("ramp", 10, 100, 4, 2.0) == ramp
    assert choose_curve("soak", 7, 7200, 4, 2.0) == soak
