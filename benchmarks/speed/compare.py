"""One served model against its peers: answers first, then speed in turns."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks.speed.comparison import Comparison
from benchmarks.speed.contenders import Bench, Step
from benchmarks.speed.equality import require_equal, require_telling
from benchmarks.speed.peers.bare_engines import BareEngine
from benchmarks.speed.peers.bare_process import BareProcess
from benchmarks.speed.peers.contender import Answer, Load
from benchmarks.speed.peers.engine_settings import ENGINES, ModelFiles, cores
from benchmarks.speed.peers.litserve_server import LITSERVE, start_litserve
from benchmarks.speed.peers.paddlex_predict import PaddlexPredict
from benchmarks.speed.peers.paddlex_server import PADDLEX_SERVER, start_paddlex_server
from benchmarks.speed.peers.served import ServedEnsemble

CONCURRENCY: Final = 8

# A median settles soon, and the machine's speed does not: latency is measured in so many times shorter windows and
# more turns.
LATENCY_SPLIT: Final = 2


@dataclasses.dataclass(frozen=True)
class Plan:
    """How long and how thoroughly a model is measured.

    Attributes:
        seconds: Length of a window; longer for a model that is slow.
        turns: Turns.
        thorough: Whether the bare process, LitServe and PaddleX's `predict()` are measured too.
        work: Folder for what peers write.
    """

    seconds: float
    turns: int
    thorough: bool
    work: Path


def compare_model(files: ModelFiles, grpc_url: str, photos: Sequence[Path], plan: Plan, step: Step) -> Comparison:
    """Compare a served model with its peers.

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
    """Return the load for a model that takes so long for an image: a wait must fit into the warm-up and the window.

    Where images take long, one caller more than cores does: an image waits for the next free core.
    """
    concurrency = CONCURRENCY
    if concurrency * image_s > plan.seconds / 2:
        concurrency = min(CONCURRENCY, cores() + 1)
    wait_s = concurrency * image_s
    return Load(concurrency, max(plan.seconds, wait_s), max(plan.seconds / 5, wait_s / 2))
