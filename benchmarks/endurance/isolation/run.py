"""A run of `make isolation`: workers ask in all ways while the server is disturbed."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from tqdm import tqdm

from benchmarks.endurance.isolation.identity_model import MODEL, make_repository, publish
from benchmarks.endurance.isolation.questions import Question, make_question
from benchmarks.endurance.isolation.ways import WAYS, Asker, Outcome, Place
from mlcls.releases.rollout import roll_back
from mlcls.repository.models import Repository
from mlcls.server.model_control import ModelControl
from mlcls.server.options import ServerOptions
from mlcls.server.process import TritonServer

BATCH_SIZES: Final = (1, 1, 1, 2, 3, 5, 8, 17, 32)
DEFAULT_REQUESTS: Final = 20_000
_SHOWN: Final = 5
# After a restart, clients may still run into the end of their old connection.
_AFTERMATH_S: Final = 3.0
# How long a server lacks a step before it is replaced.
_CRIPPLED_S: Final = 2.0


@dataclasses.dataclass
class Tally:
    """The outcomes of all requests, by way and kind.

    Attributes:
        counts: Number of requests.
        images: Images whose answers were checked.
        wrong: Descriptions of wrong answers.
        lost: Descriptions of requests that failed while the server was meant to be up.
    """

    counts: collections.Counter[tuple[str, str]] = dataclasses.field(default_factory=collections.Counter)
    images: int = 0
    wrong: list[str] = dataclasses.field(default_factory=list)
    lost: list[str] = dataclasses.field(default_factory=list)

    def total(self, kind: str) -> int:
        """Return the number of requests of a kind, over all ways."""
        return sum(count for (_, found), count in self.counts.items() if found == kind)


class Run:
    """Workers and the server that they ask.

    Attributes:
        tally: The outcomes so far.
        events: What was done to the server, in order.
    """

    def __init__(self, server: TritonServer, root: Path, requests: int, seed: int = 1) -> None:
        self.tally = Tally()
        self.events: list[str] = []
        self._server, self._root = server, root
        self._left = requests
        self._seed = seed
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._disturbed = self._quiet = False
        self._disturbed_until_s = 0.0
        self._versions = itertools.count(2)
        self._bar = tqdm(total=requests, unit="request", disable=not sys.stderr.isatty() and None)

    @property
    def server(self) -> TritonServer:
        """The server that is running now."""
        return self._server

    def go(self, ways: Mapping[str, Asker], disturbances: Sequence[Callable[[Run], None]]) -> None:
        """Ask until all requests are sent and all disturbances are done, one after the other at even intervals."""
        total = self._left
        threads = [
            threading.Thread(target=self._work, args=(name, ask, number), daemon=True)
            for number, (name, ask) in enumerate(ways.items())
        ]
        for thread in threads:
            thread.start()
        try:
            for number, disturb in enumerate(disturbances, 1):
                self._wait_until_left(total - total * number // (len(disturbances) + 1))
                disturb(self)
            self._quiet = True
            for thread in threads:
                thread.join()
        finally:
            self._stop.set()
            self._bar.close()

    @contextlib.contextmanager
    def disturbed(self, name: str) -> Iterator[None]:
        """Allow requests to be lost while the block runs, and shortly after."""
        self.events.append(name)
        self._disturbed = True
        try:
            yield
        finally:
            self._disturbed_until_s = time.monotonic() + _AFTERMATH_S
            self._disturbed = False

    def roll_out(self) -> None:
        """Publish a new version in place of the current one; no request may be lost."""
        version = next(self._versions)
        self.events.append(f"version {version} published")
        publish(self._root, version, self._control())

    def roll_back(self) -> None:
        """Roll back to the previous version; no request may be lost."""
        self.events.append(
            f"back to version {roll_back(Repository(self._root), MODEL, control=self._control()).version}"
        )

    def restart(self) -> None:
        """Stop the server and start it again on the same ports."""
        with self.disturbed("server stopped and started"):
            self._server.stop()
            self._server = TritonServer(self._server.options).start()

    def kill(self) -> None:
        """Kill the server and start it again."""
        with self.disturbed("server killed and started"):
            os.kill(self._server.pid, signal.SIGKILL)
            self._server.kill()
            self._server = TritonServer(self._server.options).start()

    def kill_step(self) -> None:
        """Kill a step of the model; Triton continues without it until the server is replaced."""
        with self.disturbed("a Python step killed, then the server replaced"):
            stubs = _find_stubs(self._server.pid)
            os.kill(random.Random(self._seed).choice(stubs), signal.SIGKILL)
            time.sleep(_CRIPPLED_S)
            self._server.kill()
            self._server = TritonServer(self._server.options).start()

    def _control(self) -> ModelControl:
        return ModelControl(f"http://{self._server.http_url}", self._server.admin_key, timeout_s=60)

    def _wait_until_left(self, left: int) -> None:
        while self._left > left and not self._stop.is_set():
            time.sleep(0.05)

    def _is_over(self) -> bool:
        """Return whether all disturbances are done and enough requests were sent."""
        return self._left <= 0 and self._quiet

    def _questions(self, source: random.Random) -> Iterator[Question]:
        while not self._stop.is_set():
            with self._lock:
                if self._is_over():
                    return
                self._left -= 1
            yield make_question(source, BATCH_SIZES)

    def _work(self, name: str, ask: Asker, number: int) -> None:
        source = random.Random(self._seed * 1000 + number)
        while not self._stop.is_set() and not self._is_over():
            server = self._server
            place = Place(server.grpc_url, server.http_url, server.admin_key)
            pause_s = 0.0
            try:
                for outcome in ask(place, self._questions(source)):
                    self._note(name, outcome)
                    if outcome.error is not None:
                        pause_s = 0.2  # a new connection, but not at once: there may be no server
                        break
            except Exception as error:  # outside of a request: no connection could be made
                self._note(name, Outcome(Question((), (), None), error=error))
                pause_s = 0.2
            time.sleep(pause_s)

    def _note(self, name: str, outcome: Outcome) -> None:
        kind = "right"
        fault = None
        if outcome.answers is not None:
            fault = outcome.question.find_fault(outcome.answers, outcome.version)
            kind = "right" if fault is None else "WRONG"
        elif outcome.error is None:
            kind = "given up"
        elif self._disturbed or time.monotonic() < self._disturbed_until_s:
            kind = "lost in a restart"
        else:
            kind = "LOST"
        with self._lock:
            self.tally.counts[name, kind] += 1
            self.tally.images += len(outcome.answers or ())
            if fault is not None:
                self.tally.wrong.append(f"{name}: {fault}")
            elif kind == "LOST":
                self.tally.lost.append(f"{name}: {type(outcome.error).__name__}: {str(outcome.error)[:200]}")
            self._bar.update()


def _find_stubs(pid: int) -> list[int]:
    """Return the process ids of a server's Python steps."""
    stubs = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with contextlib.suppress(OSError, IndexError, ValueError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and b"triton_python_backend_stub" in (folder / "cmdline").read_bytes():
                stubs.append(int(folder.name))
    return sorted(stubs)


def format_report(run: Run, seconds: float) -> str:
    """Return the counts as a table."""
    tally = run.tally
    kinds = ("right", "given up", "lost in a restart", "LOST", "WRONG")
    lines = [f"{'way':24}" + "".join(f"{kind:>19}" for kind in kinds)]
    for name in sorted({name for name, _ in tally.counts}):
        lines.append(f"{name:24}" + "".join(f"{tally.counts[name, kind]:19}" for kind in kinds))
    lines.append(f"{'all':24}" + "".join(f"{tally.total(kind):19}" for kind in kinds))
    lines.append(f"{tally.images} images answered and checked in {seconds:.0f} s; meanwhile: {'; '.join(run.events)}")
    lines += [f"  {text}" for text in (*tally.wrong[:_SHOWN], *tally.lost[:_SHOWN])]
    return "\n".join(lines)


def run_isolation(
    requests: int,
    folder: Path,
    disturbances: Sequence[Callable[[Run], None]],
    ways: Mapping[str, Asker] = WAYS,
    seed: int = 1,
) -> Run:
    """Start a server with the identity model and run against it.

    Args:
        requests: How many, at least.
        folder: Where the repository goes.
        disturbances: What to do to the server, at even intervals.
        ways: How to ask it.
        seed: Seed of everything random.

    Raises:
        MlclsError: The server cannot start, or a version cannot be published.
    """
    root = folder / "model_repository"
    root.mkdir()
    make_repository(root)
    server = TritonServer(ServerOptions.on_free_ports(root, MODEL)).start()
    run = Run(server, root, requests, seed)
    try:
        run.go(ways, disturbances)
    finally:
        run.server.kill()
    return run
