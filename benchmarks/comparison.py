"""One served model against its peers: answers first, then speed in turns."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from benchmarks.equality import require_equal, require_telling
from benchmarks.peers.bare_engines import BareEngine
from benchmarks.peers.bare_process import BareProcess
from benchmarks.peers.contender import Answer, Contender, Load, Peer
from benchmarks.peers.engine_settings import ENGINES, ModelFiles, cores
from benchmarks.peers.litserve_server import start_litserve
from benchmarks.peers.paddlex_predict import PaddlexPredict
from benchmarks.peers.paddlex_server import start_paddlex_server
from benchmarks.peers.served import ServedModel
from benchmarks.process_usage import cpu_since, read_usage
from benchmarks.turns import Turns, take_turns
from mlcls.errors import MlclsError

CONCURRENCY: Final = 8

#: An engine whose best trial is that much slower than the fastest one's is not measured in turns.
_WORTH_TURNS: Final = 0.7

#: Processor time that a loaded peer may take while nothing asks it, in cores.
_IDLE_CORES: Final = 0.1
_IDLE_WINDOW_S: Final = 1.0

PeerT = TypeVar("PeerT", bound=Peer)
Step = Callable[[str], object]


@dataclasses.dataclass(frozen=True)
class Plan:
    """How long and how thoroughly a model is measured.

    Attributes:
        seconds: Length of a window; longer for a model that is slow.
        turns: Turns; one for a model that is slow.
        thorough: Whether the bare process, LitServe and PaddleX's `predict()` are measured too.
        work: Folder for what peers write.
    """

    seconds: float
    turns: int
    thorough: bool
    work: Path


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
        """The bare engine with the highest throughput in turns.

        Raises:
            MlclsError: None was measured.
        """
        rates = {window.name: window.value for window in self.turns.windows if window.name in self.engines}
        if not rates:
            raise MlclsError(f"Expected a bare engine that was measured for {self.name}, got none.")
        return max(rates, key=lambda name: self.turns.values(name).median)

    def to_dict(self) -> dict[str, Any]:
        """All raw figures, as the JSON file has them."""
        return dataclasses.asdict(self)


def compare_model(files: ModelFiles, grpc_url: str, photos: Sequence[Path], plan: Plan, step: Step) -> Comparison:
    """Compares a served model with its peers.

    A peer that fails or answers otherwise is an error in the comparison, and the others are measured all the same.

    Args:
        files: The model.
        grpc_url: `host:port` of the running server's gRPC API.
        photos: JPEG files; what all answer and are measured with.
        plan: How thoroughly.
        step: Told what is done next.

    Raises:
        MlclsError: The served model itself fails, or answers all photos alike.
    """
    served = ServedModel(grpc_url, files.spec, photos)
    step(f"{files.spec.name}: answers")
    served.answer(photos)
    began = time.monotonic()
    expected = served.answer(photos)
    require_telling(expected)
    load, turns = _choose_load(plan, (time.monotonic() - began) / len(photos))
    comparison = Comparison(files.spec.name, load)

    def check(name: str, answers: Sequence[Answer]) -> None:
        require_equal(name, expected, answers, files.spec.thresholds)

    with contextlib.ExitStack() as stack:
        bench = _Bench(comparison, served, stack, check, photos, step)
        bench.add("paddlex --serve", lambda: start_paddlex_server(files.paddlex, plan.work, photos))
        predict = None
        if plan.thorough:
            predict = bench.add("PaddleX predict()", lambda: PaddlexPredict(files.paddlex, plan.work, photos))
            bench.add("LitServe", lambda: start_litserve(files.onnx, files.spec, photos))
            process = bench.add("bare process", lambda: BareProcess(files.onnx, files.spec, photos, plan.seconds / 2))
            if process is not None:
                comparison.trials[process.name] = process.trials
        bench.add_engines(files, trial_s=plan.seconds / 3)
        if predict is not None:
            comparison.versions = predict.versions
            with bench.record_error(predict.name):
                comparison.pixel_digests = predict.pixel_digests(photos)
        others = [name for name in bench.contenders if name not in (served.name, PaddlexPredict.name)]
        bench.require_idle()
        comparison.turns = bench.take_turns([name for name in others if name in bench.contenders], load, turns)
        if predict is not None and predict.name in bench.contenders:
            lone = dataclasses.replace(load, concurrency=1)
            comparison.latency_turns = bench.take_turns([predict.name], lone, turns, latency=True)
    return comparison


def _choose_load(plan: Plan, image_s: float) -> tuple[Load, int]:
    """Load and turns for a model that takes so long for an image.

    A caller's wait must fit into the warm-up and the window; where images take long, half the callers and one turn do.
    """
    concurrency, turns = CONCURRENCY, plan.turns
    if concurrency * image_s > plan.seconds:
        concurrency, turns = min(CONCURRENCY, 2 * cores()), 1
    wait_s = concurrency * image_s
    return Load(concurrency, max(plan.seconds, wait_s), max(plan.seconds / 5, 1.5 * wait_s)), turns


class _Bench:
    """The contenders of one model that are there and right.

    Attributes:
        contenders: By name, the served model first.
    """

    def __init__(
        self,
        comparison: Comparison,
        served: ServedModel,
        stack: contextlib.ExitStack,
        check: Callable[[str, Sequence[Answer]], object],
        photos: Sequence[Path],
        step: Step,
    ) -> None:
        self.contenders: dict[str, Contender] = {served.name: served}
        self._peers: dict[str, Peer] = {}
        self._comparison = comparison
        self._stack = stack
        self._check = check
        self._photos = photos
        self._step = step

    def add(self, name: str, start: Callable[[], contextlib.AbstractContextManager[PeerT]]) -> PeerT | None:
        """Starts a peer and checks its answers; None, and an error in the comparison, where that fails."""
        self._step(f"{self._comparison.name}: {name}")
        with self.record_error(name), contextlib.ExitStack() as stack:
            peer = stack.enter_context(start())
            self._check(name, peer.answer(self._photos))
            self._stack.push(stack.pop_all())
            self.contenders[name] = self._peers[name] = peer
            self._comparison.settings[name] = peer.setting
            return peer
        return None

    @contextlib.contextmanager
    def record_error(self, name: str) -> Iterator[None]:
        """Notes what goes wrong with a peer in the comparison, and goes on."""
        try:
            yield
        except MlclsError as error:
            self._comparison.errors[name] = str(error)

    def add_engines(self, files: ModelFiles, trial_s: float) -> None:
        """Starts the bare engines in their best settings; those that are much slower than the fastest are dropped."""
        engines = {}
        for name in ENGINES:

            def start(name: str = name) -> BareEngine:
                return BareEngine(name, files, self._photos, self._check, trial_s)

            if (engine := self.add(name, start)) is not None:
                self._comparison.trials[name] = engine.trials
                engines[name] = engine
        fastest = max((engine.trial_images_per_s for engine in engines.values()), default=0.0)
        for name, engine in engines.items():
            if engine.trial_images_per_s < _WORTH_TURNS * fastest:
                self._drop(name)
            else:
                self._comparison.engines.append(name)

    def require_idle(self) -> None:
        """Drops peers that take processor time while nothing asks them: they would slow down all others."""
        before = {name: read_usage(peer.pid) for name, peer in self._peers.items()}
        time.sleep(_IDLE_WINDOW_S)
        for name, peer in list(self._peers.items()):
            busy_cores = sum(cpu_since(before[name], read_usage(peer.pid)).values()) / _IDLE_WINDOW_S
            if busy_cores > _IDLE_CORES:
                self._comparison.errors[name] = (
                    f"Expected a peer that is idle while nothing asks it, got one that keeps {busy_cores:.1f} cores "
                    f"busy; it is not measured beside the others."
                )
                self._drop(name)

    def take_turns(self, others: Sequence[str], load: Load, turns: int, latency: bool = False) -> Turns:
        """Measures the served model and others in turns; a peer that fails is an error in the comparison."""

        def measure(name: str) -> float:
            with self.record_error(name):
                if name not in self._comparison.errors:
                    figures = self.contenders[name].measure(load)
                    return figures.median_ms if latency else figures.images_per_s
            return math.nan

        what = "latency" if latency else "turns"
        return take_turns(
            measure, ServedModel.name, others, turns, lambda: self._step(f"{self._comparison.name}: {what}")
        )

    def _drop(self, name: str) -> None:
        """Ends a peer before its time."""
        peer = self._peers.pop(name)
        del self.contenders[name]
        if name in self._comparison.engines:
            self._comparison.engines.remove(name)
        peer.stop()
