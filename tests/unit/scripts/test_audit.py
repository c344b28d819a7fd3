"""`make audit`: findings fail, and a database that was not asked proves nothing."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from scripts import audit
from support.processes import ROOT

TODAY = datetime.date(2026, 11, 28)
FAULT = {"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["2.0"], "description": "bad"}


def database(*vulns: Mapping[str, Any], canary: bool = True, skip: str | None = None) -> Callable[[Path], Any]:
    """Answers as pip-audit does."""

    def ask(path: Path) -> dict[str, Any]:
        if path.name == "canary.txt":
            assert path.read_text() == f"{audit.CANARY}\n"
            return {"dependencies": [{"name": "pillow", "version": "9.0.0", "vulns": [FAULT] if canary else []}]}
        package: dict[str, Any] = {"name": "some", "version": "1.0", "vulns": list(vulns)}
        return {"dependencies": [package, *([{"name": "other", "skip_reason": skip}] if skip else [])]}

    return ask


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(audit, "ACCEPTED_FILE", tmp_path / "accepted.txt")
    (tmp_path / "accepted.txt").write_text("# nothing\n")
    return str(tmp_path / "dev.txt")


@pytest.mark.parametrize(
    ("found", "status", "text"),
    [
        ([], 0, "1 locks: 0 findings"),
        ([FAULT], 1, "dev.txt: some 1.0: PYSEC-1, CVE-1; fixed in 2.0"),
        ([{"id": "PYSEC-2"}], 1, "dev.txt: some 1.0: PYSEC-2; no fixed version"),
    ],
)
def test_findings_fail(lock: str, capsys: pytest.CaptureFixture[str], found: list[Any], status: int, text: str) -> None:
    assert audit.main([lock], database(*found), TODAY) == status
    assert text in capsys.readouterr().out


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        (database(canary=False), "has nothing against pillow==9.0.0"),
        (
            database(skip="Dependency not found on PyPI"),
            "1 of 2 packages of dev.txt were not checked, the first: other",
        ),
        (lambda path: {}, "no package of canary.txt was checked"),
    ],
)
def test_a_database_that_was_not_asked(
    lock: str, answers: Callable[[Path], Any], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit.main([lock], answers, TODAY) == 3
    error = capsys.readouterr().err
    assert "nothing is proven" in error
    assert words in error


def test_a_program_that_is_not_there(lock: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "PIP_AUDIT", tmp_path / "none")
    assert audit.main([lock]) == 3
    program = tmp_path / "pip-audit"
    program.write_text("#!/bin/sh\necho 'ERROR: no network' >&2; exit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(audit, "PIP_AUDIT", program)
    assert audit.main([lock]) == 3


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("CVE-1 2026-11-28 never reached", 0),
        ("PYSEC-1 2027-01-01 never reached", 0),
        ("CVE-1 2026-11-27 never reached", 1),
        ("CVE-2 2027-01-01 never reached", 1),
        ("CVE-1 2027-01-01", 2),
        ("CVE-1 soon never reached", 2),
    ],
)
def test_accepted_findings(lock: str, line: str, status: int) -> None:
    audit.ACCEPTED_FILE.write_text(f"{line}\n")
    assert audit.main([lock], database(FAULT), TODAY) == status


def test_every_lock_is_audited(capsys: pytest.CaptureFixture[str]) -> None:
    asked = []

    def ask(path: Path) -> Any:
        asked.append(path.name)
        return database()(path)

    assert audit.main([], ask, TODAY) == 0
    locks = {path.with_suffix(".txt").name for path in (ROOT / "requirements").glob("*.in")} | {"triton.txt"}
    assert set(asked) - {"canary.txt"} == locks
    assert all("--hash=sha256:" in (ROOT / "requirements" / name).read_text() for name in locks)
