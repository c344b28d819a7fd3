"""A short run of `make isolation`: every way to ask, through a rollout, a rollback and a restart."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.endurance.isolation.identity_model import MODEL
from benchmarks.endurance.isolation.run import Run, format_report, run_isolation
from benchmarks.endurance.isolation.ways import WAYS

pytestmark = pytest.mark.slow

REQUESTS = 600


def test_each_answer_belongs_to_its_image(tmp_path: Path) -> None:
    run = run_isolation(REQUESTS, tmp_path, [Run.roll_out, Run.roll_back, Run.kill_step])
    report = format_report(run, 0)
    tally = run.tally
    assert not tally.wrong, report
    assert not tally.lost, report
    assert sum(tally.counts.values()) >= REQUESTS, report
    answered = {way for (way, kind), count in tally.counts.items() if kind == "right" and count}
    assert answered >= WAYS.keys() - {"HTTP, hung up"}, report
    assert tally.counts["gRPC, cancelled", "given up"], report
    assert len(run.events) == 3, report
    assert MODEL in str(run.server.options.models)
