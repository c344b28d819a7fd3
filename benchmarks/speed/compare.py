"""One served model against its peers: answers first, then speed in turns."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks.speed.contenders import Bench, Comparison, Step
from benchmarks.speed.peers.bare_engines import BareEngine
from benchmarks.speed.peers.bare_process import BareProcess
from benchmarks.speed.peers.contender import Answer, Load, PeerError
from benchmarks.speed.peers.engine_settings import ENGINES, ModelFiles, cores
from benchmarks.speed.peers.litserve_server import LITSERVE, start_litserve
from benchmarks.speed.peers.paddlex_predict import PaddlexPredict
from benchmarks.speed.peers.paddlex_server import PADDLEX_SERVER, start_paddlex_server
from benchmarks.speed.peers.served import ServedEnsemble

# Tolerance of a score between any two contenders.
TOLERANCE: Final = 1e-3

CONCURRENCY: Final = 8

# A median settles quickly, but the machine's speed changes: latency is measured in windows that are this many times
# shorter, and in this many times more turns.
LATENCY_SPLIT: Final = 2


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


@dataclasses.dataclass(frozen=True)
class Plan:
    """How long and how thoroughly a model is measured.

    Attributes:
        seconds: Length of a window; longer for a slow model.
        turns: Number of turns.
        thorough: Whether the bare process, LitServe and PaddleX's `predict()` are measured too.
        work: Folder for what peers write.
    """

    seconds: float
    turns: int
    thorough: bool
    work: Path


def compare_model(files: ModelFiles, grpc_url: str, photos: Sequence[Path], plan: Plan, step: Step) -> Comparison:
    """Compare a served model with its peers.

    A peer that fails or answers differently is recorded as an error, and the others are measured all the same.

    Args:
        files: The model.
        grpc_url: `host:port` of the running server's gRPC API.
        photos: JPEG files that all contenders answer and are measured with.
        plan: How thoroughly to measure.
        step: Called with a description of each next step.

    Raises:
        MlclsError: The served model itself fails, or gives all photos the same answer.
    """
    served = ServedEnsemble(grpc_url, files.spec, photos)
    step(f"{files.spec.name}: answers")
    served.answer(photos[:1])
    began = time.monotonic()
    expected = served.answer(photos)
    require_telling(expected)
    load = _choose_load(plan, (time.monotonic() - began) / len(photos))
    comparison = Comparison(files.spec.name, load)

    def check(name: str, answers: Sequence[Answer], asked: int) -> None:
        require_equal(name, expected[:asked], answers, files.spec.thresholds)

    with contextlib.ExitStack() as stack:
        bench = Bench(comparison, served, stack, check, photos, step)
        paddlex = bench.start(PADDLEX_SERVER, lambda: start_paddlex_server(files.paddlex, plan.work, photos))
        predict = litserve = process = None
        if plan.thorough:
            predict = bench.start(PaddlexPredict.name, lambda: PaddlexPredict(files.paddlex, plan.work, photos))
            litserve = bench.start(LITSERVE, lambda: start_litserve(files.onnx, files.spec, photos))
            process = bench.start(BareProcess.name, lambda: BareProcess(files.onnx, files.spec, photos))
        engines = [bench.start(name, partial(BareEngine, name, files, photos)) for name in ENGINES]
        bench.wait_until_loaded()
        for peer in (paddlex, predict, litserve):
            bench.admit(peer)
        if process is not None and bench.admit(process, partial(process.choose_threads, plan.seconds / 2)):
            comparison.trials[process.name] = process.trials
        bench.admit_engines(engines, plan.seconds / 2)
        if predict is not None and predict.name in bench.contenders:
            with bench.record_error(predict.name):
                comparison.versions = predict.versions()
                comparison.pixel_digests = predict.pixel_digests(photos)
        others = [name for name in bench.contenders if name not in (served.name, PaddlexPredict.name)]
        bench.require_idle()
        comparison.turns = bench.take_turns([name for name in others if name in bench.contenders], load, plan.turns)
        if predict is not None and predict.name in bench.contenders:
            lone = dataclasses.replace(load, concurrency=1, window_s=load.window_s / LATENCY_SPLIT)
            comparison.latency_turns = bench.take_turns([predict.name], lone, LATENCY_SPLIT * plan.turns, latency=True)
    return comparison


def _choose_load(plan: Plan, image_s: float) -> Load:
    """Return the load for a model that takes this long per image; a wait must fit into the warm-up and the window.

    For slow models, one caller more than there are cores is enough: an image then waits for the next free core.
    """
    concurrency = CONCURRENCY
    if concurrency * image_s > plan.seconds / 2:
        concurrency = min(CONCURRENCY, cores() + 1)
    wait_s = concurrency * image_s
    return Load(concurrency, max(plan.seconds, wait_s), max(plan.seconds / 5, wait_s / 2))
