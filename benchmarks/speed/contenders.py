"""The contenders of one model: started, checked, dropped if they fail, and measured in turns."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, TypeVar

from benchmarks.speed.peers.bare_engines import BareEngine, Check
from benchmarks.speed.peers.contender import Contender, Load, Peer
from benchmarks.speed.peers.engine_settings import ENGINES
from benchmarks.speed.turns import Turns, take_turns
from benchmarks.usage import cpu_since, read_usage
from mlcls.errors import MlclsError

# An engine is not measured in turns if its best trial is slower than this share of the fastest one's.
_WORTH_TURNS: Final = 0.8

# CPU time that a loaded peer may take while idle, in cores.
_IDLE_CORES: Final = 0.1
_IDLE_WINDOW_S: Final = 1.0
# Windows within which a peer must come to rest: after a measurement, it still has memory to free.
_IDLE_WINDOWS: Final = 5

PeerT = TypeVar("PeerT", bound=Peer)

# Called with a description of each next step.
Step = Callable[[str], object]


@dataclasses.dataclass
class Comparison:
    """The results for one model.

    Attributes:
        name: The model's name.
        load: How it was measured.
        turns: Throughput in images per second, in turns.
        latency_turns: Median latency in milliseconds at concurrency 1, in turns; None if it was not measured.
        settings: How each peer was set up.
        trials: Images per second of each engine in each setting that was tried.
        engines: Names of the bare engines that answer right.
        errors: Why a peer could not be measured.
        pixel_digests: SHA-256 of the pixels that PaddleX sees in each photo.
        versions: Versions of PaddleX and of its Paddle.
    """

    name: str
    load: Load
    turns: Turns = dataclasses.field(default_factory=lambda: Turns(()))
    latency_turns: Turns | None = None
    settings: dict[str, str] = dataclasses.field(default_factory=dict)
    trials: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    engines: list[str] = dataclasses.field(default_factory=list)
    errors: dict[str, str] = dataclasses.field(default_factory=dict)
    pixel_digests: list[str] = dataclasses.field(default_factory=list)
    versions: dict[str, str] = dataclasses.field(default_factory=dict)

    def fastest_engine(self) -> str:
        """Return the bare engine with the highest throughput in turns.

        Raises:
            MlclsError: None was measured, or one failed that could have been the fastest.
        """
        failed = [name for name in ENGINES if name in self.errors]
        if failed or not self.engines:
            raise MlclsError(f"the fastest engine is unknown; failed: {', '.join(failed) or 'all'}")
        return max(self.engines, key=lambda name: self.turns.values(name).median)


class Bench:
    """The contenders of one model that are loaded and answer right.

    Attributes:
        contenders: The contenders by name, the served model first.
    """

    def __init__(
        self,
        comparison: Comparison,
        served: Contender,
        stack: contextlib.ExitStack,
        check: Check,
        photos: Sequence[Path],
        step: Step,
    ) -> None:
        """Begin with the served model alone.

        Args:
            comparison: Receives errors, settings, engines and their trials.
            served: The served model.
            stack: Stops the peers.
            check: Called with a name, its answers to the first photos, and their number; raises if one is wrong.
            photos: What all contenders answer and are measured with.
            step: Called with a description of each next step.
        """
        self.contenders: dict[str, Contender] = {served.name: served}
        self._peers: dict[str, Peer] = {}
        self._served = served
        self._comparison = comparison
        self._stack = stack
        self._check = check
        self._photos = photos
        self._step = step

    def start(self, name: str, make: Callable[[], PeerT]) -> PeerT | None:
        """Start a peer, which loads in parallel with others; if that fails, record the error and return None."""
        with self.record_error(name):
            peer = make()
            self._stack.callback(peer.stop)
            self._peers[name] = peer
            return peer
        return None

    def wait_until_loaded(self) -> None:
        """Wait for all started peers, so that none loads while another is measured."""
        self._step(f"{self._comparison.name}: start of peers")
        for name, peer in tuple(self._peers.items()):
            with self._drop_on_error(name):
                peer.wait_until_loaded()

    def admit(self, peer: Peer | None, choose: Callable[[], object] | None = None) -> bool:
        """Check a loaded peer's answers and return whether they are right; if not, record the error and drop it.

        Args:
            peer: The peer; None and a dropped peer are not admitted.
            choose: Has the peer choose its setting first.
        """
        if peer is None or peer.name not in self._peers:
            return False
        self._step(f"{self._comparison.name}: {peer.name}")
        with self._drop_on_error(peer.name):
            if choose is not None:
                choose()
            self._comparison.settings[peer.name] = peer.setting
            self._check(peer.name, peer.answer(self._photos), len(self._photos))
            self.contenders[peer.name] = peer
            return True
        return False

    def admit_engines(self, engines: Sequence[BareEngine | None], trial_s: float) -> None:
        """Admit bare engines in their best settings; drop those that are much slower than the fastest."""
        tried: list[BareEngine] = []
        for engine in engines:
            if engine is not None and engine.name in self._peers:
                self._step(f"{self._comparison.name}: {engine.name}")
                with self._drop_on_error(engine.name):
                    engine.choose_setting(self._check, trial_s, _WORTH_TURNS * _fastest(tried))
                    self._comparison.trials[engine.name] = engine.trials
                    self._comparison.settings[engine.name] = engine.setting
                    tried.append(engine)
        for engine in tried:
            if engine.trial_images_per_s < _WORTH_TURNS * _fastest(tried):
                self._drop(engine.name)
            elif self.admit(engine):
                self._comparison.engines.append(engine.name)

    @contextlib.contextmanager
    def record_error(self, name: str) -> Iterator[None]:
        """Record an error of a peer in the comparison and continue."""
        try:
            yield
        except MlclsError as error:
            self._comparison.errors[name] = str(error)

    def require_idle(self) -> None:
        """Drop peers that take CPU time while idle: they would slow down all others."""
        busy = self._busy_cores()
        for _ in range(_IDLE_WINDOWS - 1):
            if not busy:
                return
            busy = self._busy_cores()
        for name, busy_cores in busy.items():
            self._comparison.errors[name] = (
                f"Expected the peer to be idle between requests, got {busy_cores:.2f} busy cores; it is not measured "
                f"next to the others."
            )
            self._drop(name)

    def take_turns(self, others: Sequence[str], load: Load, turns: int, latency: bool = False) -> Turns:
        """Measure the served model and others in turns; record the error of a peer that fails."""
        what = "latency" if latency else "turns"

        def measure(name: str) -> float:
            self._step(f"{self._comparison.name}: {what}")
            with self.record_error(name):
                if name not in self._comparison.errors:
                    figures = self.contenders[name].measure(load)
                    return figures.median_ms if latency else figures.images_per_s
            return math.nan

        return take_turns(measure, self._served.name, others, turns)

    def _busy_cores(self) -> dict[str, float]:
        """Return how many cores each peer that is not idle keeps busy in a window of time."""
        before = {name: read_usage(peer.pid) for name, peer in self._peers.items()}
        time.sleep(_IDLE_WINDOW_S)
        cores = {
            name: sum(cpu_since(before[name], read_usage(peer.pid)).values()) / _IDLE_WINDOW_S
            for name, peer in self._peers.items()
        }
        return {name: busy for name, busy in cores.items() if busy > _IDLE_CORES}

    @contextlib.contextmanager
    def _drop_on_error(self, name: str) -> Iterator[None]:
        """Record an error of a peer, drop the peer, and continue."""
        with self.record_error(name):
            try:
                yield
            except MlclsError:
                self._drop(name)
                raise

    def _drop(self, name: str) -> None:
        """Stop a peer early and remove it."""
        self._peers.pop(name).stop()
        self.contenders.pop(name, None)
        if name in self._comparison.engines:
            self._comparison.engines.remove(name)


def _fastest(engines: Sequence[BareEngine]) -> float:
    """Return the images per second of the fastest engine in the trials."""
    return max((engine.trial_images_per_s for engine in engines), default=0.0)
