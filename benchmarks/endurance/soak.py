"""Soak run: `mlcls serve --supervise` under steady load while faults are injected: `make soak`.

The server has a model whose answers identify their images, under two names. It gets requests over gRPC, HTTP and shared
memory at a steady share of the rate that it was measured to sustain, with batches, bad images, thresholds, and callers
that give up. The run fails if an answer is wrong, if a request is lost (neither answer nor error), or if one is refused
for two minutes of tries.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import re
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import psutil
from tqdm import tqdm

from benchmarks.endurance.asker import Asker, Outcome
from benchmarks.endurance.faults import FAULTS, Victims, plan_faults
from benchmarks.endurance.identity_model import make_repository
from benchmarks.endurance.supervised_server import SupervisedServer
from benchmarks.machine import describe_machine
from mlcls.base.files import write_text
from mlcls.base.machine import format_machine
from mlcls.errors import MlclsError

MODELS: Final = ("numbers_a", "numbers_b")
_CALLERS: Final = 64
_CLOSED_LOOP_CALLERS: Final = 8
_MEMORY_INTERVAL_S: Final = 5.0
# Faults kill with signal 9; whatever else ends a server is its own.
_CRASH: Final = re.compile(r"ended with signal (?!9\b)")


@dataclasses.dataclass
class SoakRecord:
    """Everything recorded during a run; times are monotonic.

    Attributes:
        begin_s: Time of the first request.
        rates: Requests per second: intended, and reached by a closed loop before.
        sent: Number of requests.
        outcomes: Outcomes of the requests.
        errors: Number of failed tries, by error.
        faults: Time and kind, in chronological order.
        memory_mb: Memory of the server (PSS) at even intervals.
        exit_status: Exit status of `mlcls serve` after SIGTERM.
        crashes: Lines of its log about a server that ended by itself.
    """

    begin_s: float
    rates: tuple[float, float]
    sent: int = 0
    outcomes: Sequence[Outcome] = ()
    errors: Counter[str] = dataclasses.field(default_factory=Counter)
    faults: list[tuple[float, str]] = dataclasses.field(default_factory=list)
    memory_mb: list[float] = dataclasses.field(default_factory=list)
    exit_status: int | None = None
    crashes: Sequence[str] = ()

    def find_failures(self) -> list[str]:
        """Return what is wrong, one text per kind of failure."""
        failures = []
        ended = Counter(outcome.kind for outcome in self.outcomes)
        ended["lost"] += self.sent - len(self.outcomes)
        for kind in ("lost", "wrong", "refused"):
            if ended[kind]:
                text = next((each.text for each in self.outcomes if each.kind == kind), "not even ended")
                failures.append(f"{ended[kind]} requests were {kind}, for example: {text}")
        if not ended["answered"]:
            failures.append("no request was answered")
        if self.exit_status != 0:
            failures.append(f"mlcls serve exited with {self.exit_status} after SIGTERM")
        return failures

    def find_recoveries(self) -> list[tuple[str, int, float]]:
        """Return for each fault its kind, how many requests were retried, and when the last of them was answered."""
        recoveries = []
        ends = [time_s for time_s, _ in self.faults[1:]] + [float("inf")]
        disturbed = [each for each in self.outcomes if each.tries > 1]
        for (time_s, name), end_s in zip(self.faults, ends, strict=True):
            own = [each.ended_s - time_s for each in disturbed if time_s <= each.ended_s < end_s]
            recoveries.append((name, len(own), max(own, default=0.0)))
        return recoveries

    def format(self) -> str:
        """Return the figures as lines and a table in Markdown."""
        kinds = Counter(each.kind for each in self.outcomes)
        smooth = [each.ended_s - each.sent_s for each in self.outcomes if (each.kind, each.tries) == ("answered", 1)]
        images = sum(each.images for each in self.outcomes if each.kind == "answered")
        tenth = max(1, len(self.memory_mb) // 10)
        rate, measured = self.rates
        lines = [f"{self.sent} requests at {rate:.1f}/s ({measured:.1f}/s measured): {dict(kinds)}"]
        lines[0] += f", {len(smooth)} answered on the first try; {images} images answered and checked"
        if smooth:
            p50, p95, p99 = np.percentile(smooth, [50, 95, 99]) * 1e3
            lines.append(f"latency of those on the first try: p50 {p50:.0f} ms, p95 {p95:.0f} ms, p99 {p99:.0f} ms")
        if self.memory_mb:
            first, last = np.mean(self.memory_mb[:tenth]), np.mean(self.memory_mb[-tenth:])
            lines.append(
                f"memory (PSS): {first:.0f} MB at first, {last:.0f} MB at last, {max(self.memory_mb):.0f} MB at most"
            )
        lines += ["", "| fault | times | requests retried | last of them answered after |", "|---|---|---|---|"]
        by_name: dict[str, list[tuple[int, float]]] = {}
        for name, retried, after_s in self.find_recoveries():
            by_name.setdefault(name, []).append((retried, after_s))
        for name, each in by_name.items():
            retried_texts, times = (", ".join(f"{value:.4g}" for value in column) for column in zip(*each, strict=True))
            lines.append(f"| {name} | {len(each)} | {retried_texts} | {times} s |")
        lines += [
            "",
            "Errors of tries: " + ("; ".join(f"{n} x {text}" for text, n in self.errors.most_common(20)) or "none"),
        ]
        lines += [f"Ended by itself: {line}" for line in self.crashes]
        lines += ["", *([f"FAILED: {failure}" for failure in self.find_failures()] or ["Passed."])]
        return "\n".join(lines) + "\n"


def main() -> int:
    """Parse the arguments, run, and write the report and the server's log."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.endurance.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=35.0, help="length of the load (default: %(default)s)")
    parser.add_argument("--faults", type=int, default=2 * len(FAULTS), help="number of faults (default: %(default)s)")
    parser.add_argument("--share", type=float, default=0.65, help="share of the measured rate (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=7, help="seed of faults and load (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("output") / "soak", help="default: %(default)s")
    options = parser.parse_args()
    try:
        plan = plan_faults(options.minutes * 60, options.faults, options.seed)
        record = run_soak(options.minutes * 60, plan, options.output / "serve.log", options.share, options.seed)
    except MlclsError as error:
        print(f"soak: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    text = f"{format_machine(describe_machine())}; seed {options.seed}\n\n{record.format()}"
    write_text(options.output / "report.md", text)
    print(text, end="")
    return 1 if record.find_failures() else 0


def run_soak(
    duration_s: float,
    plan: Sequence[tuple[float, str]],
    log: Path,
    share: float = 0.65,
    seed: int = 7,
    measure_s: float = 20.0,
) -> SoakRecord:
    """Serve, measure the rate of a closed loop, then ask at a share of it while faults are injected.

    Args:
        duration_s: Length of the load.
        plan: Faults, from `plan_faults`.
        log: File for the server's output.
        share: Share of the measured rate.
        seed: Seed of the load.
        measure_s: How long the rate is measured.

    Raises:
        MlclsError: The server does not start.
    """
    with tempfile.TemporaryDirectory(prefix="mlcls-soak-") as folder:
        repository = Path(folder) / "model_repository"
        repository.mkdir()
        make_repository(repository, *MODELS)
        with SupervisedServer(repository, MODELS, log) as server:
            with Asker(server.place, MODELS, _CLOSED_LOOP_CALLERS, seed=seed) as closed_loop:
                time.sleep(measure_s)
                sustained = len(closed_loop.outcomes) / measure_s
            record = SoakRecord(time.monotonic(), (share * sustained, sustained))
            with Asker(server.place, MODELS, _CALLERS, rate=share * sustained, seed=seed) as asker:
                ended = threading.Event()
                victims = Victims(server, repository, MODELS, random.Random(seed))
                worker = threading.Thread(target=_inject, args=(victims, plan, record, ended))
                worker.start()
                try:
                    _watch(duration_s, record, server, asker)
                finally:
                    ended.set()
                    worker.join()
            record.sent, record.outcomes, record.errors = asker.sent, asker.outcomes, asker.errors
        record.exit_status = server.exit_status
        record.crashes = [line for line in log.read_text().splitlines() if _CRASH.search(line)]
    return record


def _inject(victims: Victims, plan: Sequence[tuple[float, str]], record: SoakRecord, ended: threading.Event) -> None:
    """Inject each fault at its time."""
    for at_s, name in plan:
        if ended.wait(max(0.0, record.begin_s + at_s - time.monotonic())):
            return
        record.faults.append((time.monotonic(), name))
        try:
            FAULTS[name](victims)
        except (StopIteration, psutil.Error, MlclsError) as error:  # nothing to hit: the last fault is not over
            tqdm.write(f"{name}: skipped: {error!r}")
            record.faults.pop()


def _watch(duration_s: float, record: SoakRecord, server: SupervisedServer, asker: Asker) -> None:
    """Record the memory and show the progress."""
    with tqdm(total=round(duration_s), unit=" s", mininterval=5, disable=None) as bar:
        while (elapsed_s := time.monotonic() - record.begin_s) < duration_s:
            last = record.faults[-1][1] if record.faults else "none yet"
            bar.set_postfix_str(
                f"{len(asker.outcomes)} of {asker.sent} ended, faults {len(record.faults)}, last: {last}"
            )
            bar.update(round(elapsed_s) - bar.n)
            record.memory_mb.append(server.memory_bytes() / 1e6)
            time.sleep(min(_MEMORY_INTERVAL_S, max(0.0, duration_s - elapsed_s)))


if __name__ == "__main__":
    sys.exit(main())
