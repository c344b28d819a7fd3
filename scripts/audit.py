"""Check all locked packages for known vulnerabilities: `make audit`.

pip-audit asks PyPI about each package. If PyPI does not answer (no network, or a mirror without that API), pip-audit
skips the package and reports that nothing was found, an all-clear that means nothing. So this program requires that
every package was checked, and that a version that is known to be vulnerable is reported as such.

Exit status: 0 no known vulnerability; 1 at least one; 2 wrong usage; 3 the database could not be queried.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
REQUIREMENTS: Final = ROOT / "requirements"
ACCEPTED_FILE: Final = REQUIREMENTS / "audit_accepted.txt"
PIP_AUDIT: Final = ROOT / ".venv-audit" / "bin" / "pip-audit"

FOUND, UNKNOWN = 1, 3
# Vulnerable forever (CVE-2022-22817 and others): if nothing is reported for it, the query does not work.
CANARY: Final = "pillow==9.0.0"
# Not locks: uv's overrides, and this program's own list.
_NO_LOCKS: Final = ("overrides.txt", ACCEPTED_FILE.name)


Ask = Callable[[Path], Mapping[str, Any]]


class DatabaseError(Exception):
    """The database could not be queried, or not about every package."""


def main(arguments: Sequence[str] | None = None, ask: Ask | None = None, today: datetime.date | None = None) -> int:
    """Audit and print the findings.

    Args:
        arguments: Arguments of the command line.
        ask: Returns pip-audit's report on a requirements file.
        today: Decides which acceptances have expired.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, help="lock files (default: all in requirements/)")
    options = parser.parse_args(arguments)
    locks = options.files or sorted(path for path in REQUIREMENTS.glob("*.txt") if path.name not in _NO_LOCKS)
    ask = ask or run_pip_audit
    try:
        accepted = read_accepted(ACCEPTED_FILE, today or datetime.date.today())
        check_canary(ask)
        findings = [finding for lock in locks for finding in audit_file(lock, ask)]
    except DatabaseError as error:
        print(f"audit: nothing is proven: {error}", file=sys.stderr)
        print("audit: run `make audit` with access to PyPI's JSON API (/pypi/NAME/VERSION/json).", file=sys.stderr)
        return UNKNOWN
    except ValueError as error:
        print(f"audit: {error}", file=sys.stderr)
        return 2
    open_findings = [text for ids, text in findings if not ids & accepted]
    print(*open_findings, sep="\n", end="\n" * bool(open_findings))
    print(
        f"{len(locks)} locks: {len(open_findings)} findings, and {len(findings) - len(open_findings)} accepted in "
        f"{ACCEPTED_FILE.name}."
    )
    return FOUND if open_findings else 0


def check_canary(ask: Ask) -> None:
    """Check that the database reports a package that is known to be vulnerable.

    Raises:
        DatabaseError: It reports nothing.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "canary.txt"
        path.write_text(f"{CANARY}\n", encoding="utf-8")
        if not audit_file(path, ask):
            raise DatabaseError(f"the database has nothing against {CANARY}, which is known to be vulnerable")


def audit_file(path: Path, ask: Ask) -> list[tuple[set[str], str]]:
    """Return the known vulnerabilities of a lock's packages: the identifiers of each, and a line about it.

    Raises:
        DatabaseError: Some packages were not checked.
    """
    packages = ask(path).get("dependencies", [])
    if not packages:
        raise DatabaseError(f"no package of {path.name} was checked")
    skipped = [f"{package['name']} ({package['skip_reason']})" for package in packages if "skip_reason" in package]
    if skipped:
        raise DatabaseError(
            f"{len(skipped)} of {len(packages)} packages of {path.name} were not checked, the first: {skipped[0]}"
        )
    findings = []
    for package in packages:
        for fault in package["vulns"]:
            ids = [fault["id"], *fault.get("aliases", ())]
            fixes = ", ".join(fault.get("fix_versions", ()))
            fixed = f"fixed in {fixes}" if fixes else "no fixed version"
            findings.append(
                (set(ids), f"{path.name}: {package['name']} {package['version']}: {', '.join(ids)}; {fixed}")
            )
    return findings


def run_pip_audit(path: Path) -> Mapping[str, Any]:
    """Return pip-audit's report on a file; nothing is installed.

    Raises:
        DatabaseError: There is no report.
    """
    command = [str(PIP_AUDIT), "--requirement", str(path), "--no-deps", "--disable-pip", "--format", "json"]
    command += ["--timeout", "20", "--progress-spinner", "off"]
    try:
        process = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise DatabaseError(f"{PIP_AUDIT} does not run ({error.strerror}); run: make .venv-audit/.installed") from None
    try:
        report: Mapping[str, Any] = json.loads(process.stdout)
    except ValueError:
        words = process.stderr.strip().splitlines() or ["no message"]
        raise DatabaseError(f"pip-audit could not check {path.name}: {words[-1][:300]}") from None
    return report


def read_accepted(path: Path, today: datetime.date) -> set[str]:
    """Return the identifiers of the findings that are accepted today.

    Args:
        path: Lines of an identifier, the last day (YYYY-MM-DD) and the reason; `#` begins a comment.
        today: Today's date.

    Raises:
        ValueError: A line has another format.
    """
    accepted = set()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        words = line.split(maxsplit=2)
        try:
            identifier, last, _ = words
            if datetime.date.fromisoformat(last) >= today:
                accepted.add(identifier)
        except ValueError:
            raise ValueError(f"{path.name}:{number}: expected ID, YYYY-MM-DD and a reason, got {line!r}.") from None
    return accepted


if __name__ == "__main__":
    sys.exit(main())
