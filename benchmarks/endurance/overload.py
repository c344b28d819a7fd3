"""Flood a server with ten times its load, and look at refusals, memory and a neighbor model: `make overload`.

The server has a model whose answers identify their images, under two names. Ten times as many callers as keep it busy
ask one of them for batches, and come back right after an answer or soon after a refusal. A single caller asks the
other. Then the flood ends, and the run measures whether the full speed returns. Last, a client measures its latency
alone and beside a stranger who sends the most expensive requests (`stranger.py`), in turns. Each answer is checked.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.endurance.asker import Asker, ask_grpc
from benchmarks.endurance.identity_model import make_repository
from benchmarks.endurance.stranger import run_turns
from benchmarks.endurance.supervised_server import SupervisedServer
from benchmarks.machine import describe_machine
from mlcls.base.files import write_text
from mlcls.base.machine import format_machine
from mlcls.errors import MlclsError

FLOODED, NEIGHBOR = "numbers_a", "numbers_b"
# Callers that keep the machine busy, and images in each of their requests.
BUSY_CALLERS: Final = 32
BATCH_SIZE: Final = 16
FACTOR: Final = 10

# Callers of both models in each phase.
PHASES: Final = {
    "neighbor alone": (0, 1),
    "full speed": (BUSY_CALLERS, 0),
    "both busy": (BUSY_CALLERS, 1),
    "flood": (FACTOR * BUSY_CALLERS, 1),
    "two seconds after": (BUSY_CALLERS, 0),
    "full speed again": (BUSY_CALLERS, 0),
}


def main() -> int:
    """Parse the arguments, run, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="length of a phase (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("output") / "overload", help="default: %(default)s")
    options = parser.parse_args()
    lines = [
        "| phase, callers | answered/s | p50, p99 | failed | memory (PSS) | neighbor: p50, p99 | failed |",
        "|---" * 7 + "|",
    ]
    failures: list[str] = []
    try:
        with tempfile.TemporaryDirectory(prefix="mlcls-overload-") as folder:
            repository = Path(folder) / "model_repository"
            repository.mkdir()
            make_repository(repository, FLOODED, NEIGHBOR)
            with SupervisedServer(repository, (FLOODED, NEIGHBOR), options.output / "serve.log") as server:
                for name, (flooding, neighbors) in PHASES.items():
                    seconds = 2.0 if "two seconds" in name else options.seconds
                    lines.append(
                        _run_phase(
                            server, f"{name}, {flooding} and {neighbors}", seconds, flooding, neighbors, failures
                        )
                    )
                    print(lines[-1], file=sys.stderr)
                lines += ["", *run_turns(server.place, NEIGHBOR, options.seconds / 2, failures)]
    except MlclsError as error:
        print(f"overload: {error}", file=sys.stderr)
        return error.exit_code
    failures += [line for line in server.log.read_text().splitlines() if "Restart" in line]
    lines += ["", *(f"FAILED: {failure}" for failure in failures), "" if failures else "Passed."]
    text = f"{format_machine(describe_machine())}; {BATCH_SIZE} images per request\n\n" + "\n".join(lines) + "\n"
    write_text(options.output / "report.md", text)
    print(text, end="")
    return 1 if failures else 0


def _run_phase(
    server: SupervisedServer, name: str, seconds: float, flooding: int, neighbors: int, failures: list[str]
) -> str:
    """Run callers of both models for a while, note what must not happen, and return a row of the table."""
    askers = [
        Asker(server.place, [model], callers, ways=[ask_grpc], patience_s=0.0, batch_sizes=[images])
        for model, callers, images in ((FLOODED, flooding, BATCH_SIZE), (NEIGHBOR, neighbors, 1))
    ]
    memory_mb = 0.0
    with contextlib.ExitStack() as stack:
        for asker in askers:
            stack.enter_context(asker)
        began = time.monotonic()  # hundreds of callers take seconds to start
        while time.monotonic() - began < seconds:
            memory_mb = max(memory_mb, server.memory_bytes() / 1e6)
            time.sleep(min(1.0, max(0.0, began + seconds - time.monotonic())))
    cells = []
    for asker in askers:
        failed = [each for each in asker.outcomes if each.kind != "answered"]
        failures += {f"{name}: {each.kind}: {each.text}" for each in failed if not is_refusal(each.kind, each.text)}
        if asker.sent and len(failed) == len(asker.outcomes):
            failures.append(f"{name}: no request was answered")
        counts = Counter(each.text.partition(":")[0] for each in failed)
        answered = [each for each in asker.outcomes if each.kind == "answered"]
        rate = sum(0 <= each.ended_s - began <= seconds for each in answered) / seconds
        latencies = [each.ended_s - each.sent_s for each in answered]
        p50_p99 = "{:.0f}, {:.0f} ms".format(*np.percentile(latencies, [50, 99]) * 1e3) if latencies else "-"
        cells.append([f"{rate:.1f}", p50_p99, str(dict(counts) or 0)])
    return f"| {name} | {' | '.join(cells[0])} | {memory_mb:.0f} MB | {' | '.join(cells[1][1:])} |"


def is_refusal(kind: str, text: str) -> bool:
    """Return whether an outcome is one that an overloaded server may have."""
    return kind in ("refused", "lost") and text.startswith(("UNAVAILABLE", "DEADLINE_EXCEEDED"))


if __name__ == "__main__":
    sys.exit(main())
