"""One served model against its peers: answers first, then speed in turns."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from signal import SIGKILL, SIGSTOP
from typing import Final

from benchmarks.speed.bench import SERVED, Answer, Bench, PeerError, Rate
from benchmarks.speed.in_process import BARE_PROCESS, ENGINES, PADDLEX_PREDICT, cores
from benchmarks.speed.peers import LITSERVE, PADDLEX_SERVER, Child, Peer, start_litserve, start_paddlex_server
from benchmarks.speed.turns import Turns, take_turns
from mlcls.errors import MlclsError

# Tolerance of a score between any two contenders.
TOLERANCE: Final = 1e-3

CONCURRENCY: Final = 8


Starts = Mapping[str, Callable[[Bench], Peer]]


@dataclasses.dataclass
class Comparison:
    """The results for one model.

    Attributes:
        concurrency: Requests in flight at a server.
        turns: Throughput in images per second, in turns.
        latency_turns: Median latency in milliseconds at concurrency 1, in turns.
        preprocess_ms: Time to decode and resize each photo on one core.
        errors: Why a peer could not be measured.
    """

    concurrency: int
    turns: Turns = dataclasses.field(default_factory=list)
    latency_turns: Turns = dataclasses.field(default_factory=list)
    preprocess_ms: list[float] = dataclasses.field(default_factory=list)
    errors: dict[str, str] = dataclasses.field(default_factory=dict)

    @contextlib.contextmanager
    def recorded(self, name: str) -> Iterator[None]:
        """Record an error of a peer and continue."""
        try:
            yield
        except MlclsError as error:
            self.errors[name] = str(error)


def require_telling(answers: Sequence[Answer]) -> None:
    """Refuse photos that all get the same answer: comparing answers to them would prove nothing.

    Raises:
        PeerError: There are no photos, or all answers are the same or empty.
    """
    if len(answers) < 2 or all(_differ(answer, answers[0], ()) is None for answer in answers):
        raise PeerError(
            f"Expected photos with different answers, got {len(answers)} that are all alike, which would prove "
            f"nothing about a peer. Use other photos or another model."
        )


def require_equal(
    name: str, expected: Sequence[Answer], answers: Sequence[Answer], thresholds: Sequence[float]
) -> None:
    """Refuse a contender whose answers differ from those of the served model.

    Scores may differ by `TOLERANCE`, so a label whose score is that close to its threshold may be missing.

    Args:
        name: The contender's name.
        expected: The served model's answer to each photo.
        answers: The contender's answer to each photo, in the same order.
        thresholds: The threshold of each class id.

    Raises:
        PeerError: An answer differs; the text has the photo's index and the first difference.
    """
    if len(answers) != len(expected):
        raise PeerError(f"{name}: expected {len(expected)} answers, one for each photo, got {len(answers)}.")
    for index, (ours, theirs) in enumerate(zip(expected, answers, strict=True)):
        difference = _differ(ours, theirs, thresholds)
        if difference is not None:
            raise PeerError(
                f"{name}: expected the served model's answer to photo {index}, got another one ({difference}); its "
                f"speed is not compared."
            )


def _differ(ours: Answer, theirs: Answer, thresholds: Sequence[float]) -> str | None:
    """Describe the first difference; None if there is none."""
    for index in sorted({*ours, *theirs}):
        at_threshold = thresholds[index] if index < len(thresholds) else float("nan")
        one, other = (answer.get(index, at_threshold) for answer in (ours, theirs))
        if not abs(one - other) <= TOLERANCE:  # NaN differs
            texts = [f"{answer[index]:.5f}" if index in answer else "no label" for answer in (ours, theirs)]
            return f"class id {index}: expected {texts[0]}, got {texts[1]}"
    return None


def list_peers(thorough: bool) -> Starts:
    """Return what starts each peer, by its name; LitServe and the programs without a server only if thorough."""
    servers: Starts = {PADDLEX_SERVER: start_paddlex_server, **({LITSERVE: start_litserve} if thorough else {})}
    children = (*((PADDLEX_PREDICT, BARE_PROCESS) if thorough else ()), *ENGINES)
    return {**servers, **{name: partial(Child, name=name) for name in children}}


def compare_model(
    bench: Bench, starts: Starts, seconds: float, turns: int, step: Callable[[str], object]
) -> Comparison:
    """Check the peers' answers, and measure those that answer like the served model in turns with it.

    A peer that fails or answers differently is recorded as an error, and the others are measured all the same.

    Args:
        bench: The model and the photos.
        starts: What starts each peer, by its name.
        seconds: Length of a measurement; longer for a slow model.
        turns: Number of turns.
        step: Called with a description of each next step.

    Raises:
        MlclsError: The served model itself fails, or gives all photos the same answer.
    """
    model = bench.files.spec.name
    step(f"{model}: answers")
    bench.answer_served(bench.photos[:1])
    began = time.monotonic()
    expected = bench.answer_served(bench.photos)
    image_s = (time.monotonic() - began) / len(expected)
    require_telling(expected)
    # for slow models, one caller more than there are cores is enough: an image then waits for the next free core
    slow = CONCURRENCY * image_s > seconds / 2
    comparison = Comparison(min(CONCURRENCY, cores() + 1) if slow else CONCURRENCY)
    rate = Rate(comparison.concurrency, seconds, image_s)
    with contextlib.ExitStack() as stack:
        step(f"{model}: start of peers")
        peers: dict[str, Peer] = {}
        for name, start in starts.items():  # they load at the same time
            with comparison.recorded(name):
                peers[name] = start(bench)
                stack.callback(peers[name].stop)
        for name, peer in peers.items():
            step(f"{model}: {name}")
            with comparison.recorded(name):
                peer.wait_until_loaded()
        for name, peer in peers.items():
            with comparison.recorded(name):
                if name not in comparison.errors:
                    require_equal(name, expected, peer.answer(), bench.files.spec.thresholds)
        for name in comparison.errors.keys() & peers.keys():
            peers.pop(name).signal(SIGKILL)
        for peer in peers.values():
            peer.signal(SIGSTOP)

        def measure(name: str, rate: Rate, figure: str) -> float | None:
            step(f"{model}: {figure} of {name}")
            with comparison.recorded(name):
                if name == SERVED:
                    return float(getattr(bench.measure_served(rate), figure))
                if name not in comparison.errors:
                    with peers[name].running():
                        return float(getattr(peers[name].measure(rate), figure))
            return None

        others = [name for name in peers if name != PADDLEX_PREDICT]
        comparison.turns = take_turns(partial(measure, rate=rate, figure="images_per_s"), SERVED, others, turns)
        if PADDLEX_PREDICT in peers:
            measure_lone = partial(measure, rate=dataclasses.replace(rate, concurrency=1), figure="median_ms")
            comparison.latency_turns = take_turns(measure_lone, SERVED, [PADDLEX_PREDICT], 2 * turns)
        if isinstance(child := peers.get(BARE_PROCESS), Child):
            with comparison.recorded(BARE_PROCESS), child.running():
                comparison.preprocess_ms = child.ask("measure_preprocess")
    return comparison
