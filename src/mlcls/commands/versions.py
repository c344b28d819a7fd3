"""The command `mlcls versions`."""

from __future__ import annotations

import argparse
import json
from typing import Final

from mlcls.commands.options import add_repository_option

NAME: Final = "versions"
SUMMARY: Final = "List the versions of a model: which is active, when each was made and from what."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("model", metavar="NAME", help="name of a model")
    parser.add_argument("--json", action="store_true", help="print JSON, with all hashes")
    add_repository_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print a line for each version."""
    from mlcls.repository.models import Repository
    from mlcls.repository.version_report import describe_versions

    reports = describe_versions(Repository(arguments.repository), arguments.model)
    if arguments.json:
        print(json.dumps(reports, indent=2, ensure_ascii=False))
        return 0
    print(
        f"{'version':>7}  {'':6}  {'made':25}  {'replaced':>8}  {'labels':>6}  {'size (MB)':>9}  {'model.onnx':12}  "
        f"calibrated for"
    )
    for report in reports:
        print(
            f"{report['version']:7}  {'active' if report['active'] else '':6}  {report['created']:25}  "
            f"{report['replaces'] or '':8}  {report['labels']:6}  {report['size_bytes'] / 1e6:9.1f}  "
            f"{report['onnx_sha256'][:12]}"
            + (f"  {report['calibration'].get('objective')}" if report["calibration"] else "")
        )
    return 0
