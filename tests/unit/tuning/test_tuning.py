"""What `mlcls tune` decides, from made-up measurements."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import pytest

from mlcls.errors import ServerError, TuningError
from mlcls.repository.settings import ServingSettings
from mlcls.tuning.closed_loop import LoopFigures
from mlcls.tuning.comparison import Candidate, Goal, compare
from mlcls.tuning.search import Search
from mlcls.tuning.search_space import engine_shapes, list_concurrencies, list_knobs

START = ServingSettings()
BETTER = ServingSettings(engine_instances=2, engine_threads=1)
WINDOW_S = 2.0


def figures(concurrency: int, images_per_s: float, p99_ms: float) -> LoopFigures:
    return LoopFigures(concurrency, WINDOW_S, np.full(round(images_per_s * WINDOW_S), p99_ms / 1e3))


class Machine:
    """Has the throughput of its slowest step; each turn takes time and adds noise."""

    def __init__(self, noise: float = 0.0, broken: Sequence[ServingSettings] = ()) -> None:
        self.now_s = 0.0
        self.measured: list[ServingSettings] = []
        self._random = np.random.default_rng(0)
        self._noise = noise
        self._broken = broken

    def rate(self, settings: ServingSettings) -> float:
        engine = {(1, 0): 60.0, (2, 1): 75.0}.get((settings.engine_instances, settings.engine_threads), 50.0)
        return min(engine, 35.0 * settings.preprocess_instances)

    def __call__(self, settings: ServingSettings, concurrencies: Sequence[int]) -> dict[int, LoopFigures]:
        self.now_s += 2.0 + len(concurrencies) * WINDOW_S * 1.2
        self.measured.append(settings)
        if settings in self._broken:
            raise ServerError("no memory")
        factor = 1 + self._noise * float(self._random.uniform(-1, 1))
        found = {}
        for concurrency in concurrencies:
            rate = self.rate(settings) * min(1.0, concurrency / 3) * factor
            found[concurrency] = figures(concurrency, rate, 1e3 * concurrency / rate)
        return found

    def search(self, goal: Goal, budget_s: float = 1e6) -> Search:
        return Search(self, goal, list_knobs("embedded", 2), list_concurrencies("embedded", 2), budget_s, self.clock)

    def clock(self) -> float:
        return self.now_s


def test_the_best_settings_are_found() -> None:
    outcome = Machine().search(Goal(150.0)).run(START)
    assert outcome.status == "changed"
    # 75 images/s of the engine take three processes that decode 35 each
    assert outcome.settings == msgspec.structs.replace(BETTER, preprocess_instances=3)
    assert outcome.figures.images_per_s == pytest.approx(75.0, rel=0.01)
    assert outcome.figures.percentile_ms(99) <= 150.0


def test_noise_changes_nothing() -> None:
    """All settings give the same throughput, with 20% noise."""
    machine = Machine(noise=0.2)
    machine.rate = lambda settings: 60.0  # type: ignore[method-assign]
    outcome = machine.search(Goal(None)).run(START)
    assert (outcome.status, outcome.settings) == ("kept", START)


def test_a_lower_latency_target_takes_a_lower_concurrency() -> None:
    outcome = Machine().search(Goal(60.0)).run(START)
    assert outcome.figures.percentile_ms(99) <= 60.0
    assert outcome.figures.concurrency < 8


def test_no_candidate_meets_the_target() -> None:
    outcome = Machine().search(Goal(5.0)).run(START)
    assert outcome.status == "missed"
    assert "no candidate gives the highest throughput with p99 of at most 5 ms; the nearest has" in outcome.reason


def test_settings_that_cannot_be_served_are_skipped() -> None:
    machine = Machine(broken=[BETTER])
    search = machine.search(Goal(150.0))
    outcome = search.run(START)
    assert search.candidates[BETTER].fault == "no memory"
    assert machine.measured.count(BETTER) == 1
    assert outcome.settings != BETTER
    with pytest.raises(ServerError, match="no memory"):
        Machine(broken=[START]).search(Goal(150.0)).run(START)


def test_it_ends_in_time() -> None:
    machine = Machine()
    machine.search(Goal(150.0), budget_s=300.0).run(START)
    assert 150.0 < machine.now_s < 330.0
    with pytest.raises(TuningError, match="more with --minutes"):
        Machine().search(Goal(150.0), budget_s=5.0).run(START)


@pytest.mark.parametrize(
    ("ratios", "is_taken"),
    [((1.2,), False), ((1.2, 1.2), True), ((1.2, 0.9, 1.1), False), ((1.01, 1.01), False), ((1.3, 1.2, 1.25), True)],
)
def test_a_gain_must_exceed_the_spread(ratios: tuple[float, ...], is_taken: bool) -> None:
    pairs = [({4: figures(4, 100.0, 40.0)}, {4: figures(4, 100.0 * ratio, 40.0)}) for ratio in ratios]
    incumbent = Candidate(START, [own for own, _ in pairs])
    challenger = Candidate(BETTER, [other for _, other in pairs])
    verdict = compare("engine", incumbent, challenger, pairs, Goal(150.0))
    assert verdict.is_taken is is_taken
    assert verdict.ratios == pytest.approx(ratios, rel=0.01)


def test_a_faster_challenger_that_misses_the_target_is_not_taken() -> None:
    pairs = [({4: figures(4, 100.0, 40.0)}, {4: figures(4, 200.0, 400.0)})] * 3
    incumbent, challenger = Candidate(START, [pairs[0][0]] * 3), Candidate(BETTER, [pairs[0][1]] * 3)
    verdict = compare("engine", incumbent, challenger, pairs, Goal(150.0))
    assert not verdict.is_taken
    assert verdict.reason == "misses the target"


def test_the_search_space() -> None:
    assert engine_shapes("embedded", 2) == [(1, 0), (1, 1), (2, 1)]
    assert engine_shapes("cpu", 4) == [(1, 0), (2, 0), (3, 0), (4, 0)]
    for cores in (1, 2, 3, 8, 96):
        shapes = engine_shapes("int8", cores)
        assert len(shapes) == len(set(shapes))
        assert all(count * threads <= cores for count, threads in shapes)
        assert list_concurrencies("embedded", cores)[0] == 1
    assert list_concurrencies("embedded", 2) == [1, 2, 3, 4, 6, 8, 12, 16]
    assert max(list_concurrencies("gpu", 2)) == 128
