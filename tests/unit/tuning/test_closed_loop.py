"""The closed loop of load."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from mlcls.tuning.closed_loop import LoopFigures, run_closed_loop


def test_each_caller_has_its_own_call_and_asks_one_after_the_other() -> None:
    active: dict[int, int] = {}
    most = [0]
    lock = threading.Lock()

    def make_call():  # type: ignore[no-untyped-def]
        own = len(active)
        active[own] = 0

        def call() -> None:
            with lock:
                active[own] += 1
                assert active[own] == 1
                most[0] = max(most[0], sum(active.values()))
            time.sleep(0.01)
            with lock:
                active[own] -= 1

        return call

    figures = run_closed_loop(make_call, concurrency=3, window_s=0.3, warmup_s=0.2)
    assert most[0] == 3
    assert figures.concurrency == 3
    assert min(figures.latencies_s) >= 0.0099
    # at most what three callers can do in the window, without the warm-up
    assert 0 < figures.images_per_s <= 3 / 0.01 * 1.1


@pytest.mark.parametrize("keep_load", [False, True])
def test_a_failing_call_ends_the_loop(keep_load: bool) -> None:
    names = iter(("fails", "works"))

    def make_call():  # type: ignore[no-untyped-def]
        name = next(names)

        def call() -> None:
            time.sleep(0.01)
            if name == "fails":
                raise ValueError("no answer")

        return call

    began = time.monotonic()
    with pytest.raises(ValueError, match="no answer"):
        run_closed_loop(make_call, concurrency=2, window_s=30.0, keep_load=keep_load)
    assert time.monotonic() - began < 10


def test_figures() -> None:
    figures = LoopFigures(2, 4.0, np.array([0.1, 0.2, 0.3, 0.4]))
    assert figures.images_per_s == 1.0
    assert figures.percentile_ms(50) == pytest.approx(250.0)
    assert np.isnan(LoopFigures(1, 1.0, np.array([])).percentile_ms(50))


def test_a_call_that_the_window_cuts_counts_by_its_share() -> None:
    # half of the only call lies in the window; none ends in it
    figures = run_closed_loop(lambda: lambda: time.sleep(0.4), 1, window_s=0.2, warmup_s=0.1)
    assert len(figures.latencies_s) == 0
    assert figures.calls is not None
    assert 0.3 < figures.calls < 0.6
    assert figures.images_per_s == pytest.approx(figures.calls / 0.2)


def test_load_is_kept_until_the_last_cut_call_is_answered() -> None:
    ended: dict[str, list[float]] = {"quick": [], "slow": []}
    names = iter(ended)

    def make_call():  # type: ignore[no-untyped-def]
        name = next(names)

        def call() -> None:
            time.sleep(0.02 if name == "quick" else 0.5)
            ended[name].append(time.monotonic())

        return call

    run_closed_loop(make_call, 2, window_s=0.1, warmup_s=0.0, keep_load=True)
    assert len(ended["slow"]) == 1
    assert ended["quick"][-1] >= ended["slow"][0] - 0.1
    assert len(ended["quick"]) > 10
