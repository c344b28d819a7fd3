"""The command `mlcls doctor`."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Final

from mlcls.commands.options import add_repository_option

NAME: Final = "doctor"
SUMMARY: Final = "Check this machine, a repository and a running server; say what is wrong and how to fix it."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.epilog = "Changes nothing. Exits with status 1 if there is a problem."
    parser.add_argument(
        "--tritonserver",
        type=Path,
        metavar="DIR",
        help="Triton to check instead of the embedded one, e.g. /opt/tritonserver in NVIDIA's container",
    )
    parser.add_argument("--url", metavar="HOST:PORT", help="HTTP address of a running server; no key is sent")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    add_repository_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the findings, the problems last; return 1 if there is a problem, else 0."""
    from mlcls.doctor.checks import examine

    findings = examine(arguments.repository, arguments.tritonserver, arguments.url)
    problems = sum(finding.level == "problem" for finding in findings)
    if arguments.json:
        print(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2, ensure_ascii=False))
        return 1 if problems else 0
    order = ("ok", "note", "warning", "problem")
    for finding in sorted(findings, key=lambda finding: order.index(finding.level)):
        print(f"{finding.level:8} {finding.topic:14} {finding.found}")
        if finding.remedy:
            print(f"{'':23} -> {finding.remedy}")
    print(f"{problems} problems" if problems != 1 else "1 problem")
    return 1 if problems else 0
