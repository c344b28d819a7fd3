"""A short soak run: every answer belongs to its image, through a kill, a new version and back; and an overload."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.endurance import overload
from benchmarks.endurance.soak import run_soak

pytestmark = pytest.mark.slow

FAULTS = ("new version", "killed engine", "new version and back")


def test_each_answer_belongs_to_its_image(tmp_path: Path) -> None:
    plan = [(5.0 + 20.0 * number, name) for number, name in enumerate(FAULTS)]
    record = run_soak(70, plan, tmp_path / "serve.log", seed=3, measure_s=4)
    report = record.format()
    assert record.find_failures() == [], report
    assert [name for _, name in record.faults] == list(FAULTS), report
    kinds = {outcome.kind for outcome in record.outcomes}
    assert kinds == {"answered", "given up"}, report
    retried = {name: count for name, count, _ in record.find_recoveries()}
    assert retried["killed engine"] > 0, report
    assert "Restart 1" in (tmp_path / "serve.log").read_text()


def test_an_overloaded_server_refuses_and_recovers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["overload", "--seconds", "3", "--output", str(tmp_path)])
    status = overload.main()
    printed = capsys.readouterr().out
    assert status == 0, printed
    rows = {line.split("|")[1].split(",")[0].strip(): line for line in printed.splitlines() if line.startswith("| ")}
    assert rows.keys() >= overload.PHASES.keys()
    assert "UNAVAILABLE" in rows["flood"]
    assert "UNAVAILABLE" not in rows["full speed again"]
    assert (tmp_path / "report.md").read_text() == printed
