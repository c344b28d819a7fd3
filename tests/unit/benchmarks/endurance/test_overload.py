"""What the overload run makes of its callers' figures."""

from __future__ import annotations

from collections import Counter

from benchmarks.endurance.overload import FLOODED, NEIGHBOR, Phase, is_refusal


def test_figures_of_a_phase() -> None:
    phase = Phase(2.0, {FLOODED: [0.1, 0.2, 0.3], NEIGHBOR: []}, Counter({f"{FLOODED}: UNAVAILABLE": 5}), 512.4)
    assert phase.summarize() == {
        "seconds": 2.0,
        "memory_mb": 512,
        FLOODED: {"answered_per_s": 1.5, "p50_ms": 200.0, "p99_ms": 298.0},
        "errors": {f"{FLOODED}: UNAVAILABLE": 5},
    }


def test_what_an_overloaded_server_may_say() -> None:
    assert is_refusal(f"{FLOODED}: UNAVAILABLE")
    assert is_refusal(f"{NEIGHBOR}: DEADLINE_EXCEEDED")
    assert not is_refusal(f"{NEIGHBOR}: INTERNAL")
