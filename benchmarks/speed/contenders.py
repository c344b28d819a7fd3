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


@dataclasses.dataclass
class Comparison:
    """What was found about one model.

    Attributes:
        name: The model's.
        load: How it was measured.
        turns: Throughput in images per second, in turns.
        latency_turns: Median latency in milliseconds at concurrency 1, in turns; None where it was not measured.
        settings: How each peer was set up.
        trials: Images per second of each setting of each engine that was tried.
        engines: Names of the bare engines that are right.
        errors: What could not be measured, and why, by peer.
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
            MlclsError: None was measured; or one failed, which could have been the fastest.
        """
        failed = [name for name in ENGINES if name in self.errors]
        if failed or not self.engines:
            raise MlclsError(f"the fastest engine is not known; failed: {', '.join(failed) or 'all'}")
        return max(self.engines, key=lambda name: self.turns.values(name).median)


# An engine whose best trial is slower than so much of the fastest one's is not measured in turns.
_WORTH_TURNS: Final = 0.8

# Processor time that a loaded peer may take while nothing asks it, in cores.
_IDLE_CORES: Final = 0.1
_IDLE_WINDOW_S: Final = 1.0
# Windows within which a peer must have come to rest: what was just measured has memory to give back.
_IDLE_WINDOWS: Final = 5

PeerT = TypeVar("PeerT", bound=Peer)

# Told what is done next.
Step = Callable[[str], object]


class Bench:
    """The contenders of one model that are there and right.

    Attributes:
        contenders: By name, the served model first; the others are loaded and right.
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
            comparison: Takes errors, settings, and the engines and their trials.
            served: The served model.
            stack: Ends the peers.
            check: Called with a name, its answers to the first photos, and how many; raises where they are wrong.
            photos: What all answer and are measured with.
            step: Told what is done next.
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
        """Start a peer, which loads while others do; None, and an error in the comparison, where that fails."""
        with self.record_error(name):
            peer = make()
            self._stack.callback(peer.stop)
            self._peers[name] = peer
            return peer
        return None

    def wait_until_loaded(self) -> None:
        """Wait for all peers that were started, so that none loads while another is measured."""
        self._step(f"{self._comparison.name}: start of peers")
        for name, peer in tuple(self._peers.items()):
            with self._drop_on_error(name):
                peer.wait_until_loaded()

    def admit(self, peer: Peer | None, choose: Callable[[], object] | None = None) -> bool:
        """Check the answers of a peer that is loaded; where it fails it is dropped, an error in the comparison.

        Args:
            peer: The peer; None and one that is dropped already are not admitted.
            choose: Has it choose its setting before.
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
        """Admit bare engines in their best settings; those that are much slower than the fastest are dropped."""
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
        """Note what goes wrong with a peer in the comparison, and goes on."""
        try:
            yield
        except MlclsError as error:
            self._comparison.errors[name] = str(error)

    def require_idle(self) -> None:
        """Drop peers that take processor time while nothing asks them: they would slow down all others."""
        busy = self._busy_cores()
        for _ in range(_IDLE_WINDOWS - 1):
            if not busy:
                return
            busy = self._busy_cores()
        for name, busy_cores in busy.items():
            self._comparison.errors[name] = (
                f"Expected a peer that is idle while nothing asks it, got one that keeps {busy_cores:.2f} cores busy; "
                f"it is not measured beside the others."
            )
            self._drop(name)

    def take_turns(self, others: Sequence[str], load: Load, turns: int, latency: bool = False) -> Turns:
        """Measure the served model and others in turns; a peer that fails is an error in the comparison."""
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
        """Of peers that are not idle: cores that they keep busy in a window of time."""
        before = {name: read_usage(peer.pid) for name, peer in self._peers.items()}
        time.sleep(_IDLE_WINDOW_S)
        cores = {
            name: sum(cpu_since(before[name], read_usage(peer.pid)).values()) / _IDLE_WINDOW_S
            for name, peer in self._peers.items()
        }
        return {name: busy for name, busy in cores.items() if busy > _IDLE_CORES}

    @contextlib.contextmanager
    def _drop_on_error(self, name: str) -> Iterator[None]:
        """Note what goes wrong with a peer, ends it, and goes on."""
        with self.record_error(name):
            try:
                yield
            except MlclsError:
                self._drop(name)
                raise

    def _drop(self, name: str) -> None:
        """End a peer before its time."""
        self._peers.pop(name).stop()
        self.contenders.pop(name, None)
        if name in self._comparison.engines:
            self._comparison.engines.remove(name)


def _fastest(engines: Sequence[BareEngine]) -> float:
    """Return images per second of the fastest engine in its trials."""
    return max((engine.trial_images_per_s for engine in engines), default=0.0)
