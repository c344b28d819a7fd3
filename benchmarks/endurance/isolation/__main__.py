"""Check that each answer belongs to its image: `make isolation`, or `python -m benchmarks.endurance.isolation`.

Clients of all kinds ask a model whose answers identify their images, all at once: single images and batches of up to
32, good and bad images in one request, thresholds of every form, answers that nobody waits for. Meanwhile, new versions
are rolled out, and the server is restarted, is killed, and loses a step. The exit status is 1 if an answer was wrong,
or missing while the server was meant to be up.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.endurance.isolation.run import DEFAULT_REQUESTS, Run, format_report, run_isolation
from mlcls.base.files import write_text
from mlcls.errors import MlclsError


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the arguments, run and print the report."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.endurance.isolation", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--requests", type=int, default=DEFAULT_REQUESTS, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--output", type=Path, default=Path("output") / "isolation.json", help="default: %(default)s")
    options = parser.parse_args(arguments)
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its threads complain if a stream ends with its server
    disturbances = [Run.roll_out, Run.restart, Run.roll_back, Run.roll_out, Run.kill, Run.roll_out, Run.kill_step]
    start_s = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="mlcls-isolation-") as folder:
            run = run_isolation(options.requests, Path(folder), disturbances, seed=options.seed)
    except MlclsError as error:
        print(f"isolation: {error}", file=sys.stderr)
        return 1
    seconds = time.monotonic() - start_s
    print(format_report(run, seconds))
    counts = {f"{name}: {kind}": count for (name, kind), count in sorted(run.tally.counts.items())}
    report = {"requests": options.requests, "seed": options.seed, "seconds": round(seconds, 1), "counts": counts}
    report |= {"images": run.tally.images, "events": run.events, "wrong": run.tally.wrong, "lost": run.tally.lost}
    write_text(options.output, json.dumps(report, ensure_ascii=False, indent=1) + "\n")
    return 1 if run.tally.wrong or run.tally.lost else 0


if __name__ == "__main__":
    sys.exit(main())
