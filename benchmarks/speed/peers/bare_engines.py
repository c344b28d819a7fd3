"""Bare engines: OpenVINO, ONNX Runtime and Paddle on decoded images, each in a child process in its best setting.

Run as a module, this file is the child.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.speed.peers.contender import Answer, Figures, Load, answer_of_result
from benchmarks.speed.peers.engine_settings import ModelFiles, Scores, list_settings
from benchmarks.speed.peers.line_child import LineChild, obey
from mlcls.images.transforms import preprocess
from mlcls.model.postprocess import select_labels
from mlcls.model.spec import ModelSpec
from mlcls.tuning.closed_loop import Call, run_closed_loop

# Called with a setting, its answers to the first photos, and their number; raises if one is wrong.
Check = Callable[[str, Sequence[Answer], int], object]

# A first call takes up to this many times as long as later ones.
_FIRST_CALL: Final = 4


class BareEngine:
    """The parent's side of one engine.

    Attributes:
        name: The engine's name.
        setting: The best setting of those tried.
        trials: Images per second of each setting tried; empty before `choose_setting`.
    """

    def __init__(self, engine: str, files: ModelFiles, photos: Sequence[Path]) -> None:
        """Start a child, which loads the engine in each of its settings.

        Args:
            engine: One of `engine_settings.ENGINES`.
            files: The model.
            photos: What it is measured with; decoded before the clock starts.
        """
        self.name = engine
        self.setting = next(iter(list_settings(engine)))
        paths = (files.onnx, files.paddlex, *photos)
        self._child = LineChild(
            engine,
            Path(sys.executable),
            __name__,
            engine,
            files.spec.to_json(),
            *(str(path.resolve()) for path in paths),
        )
        self.trials: dict[str, float] = {}

    def wait_until_loaded(self) -> None:
        """See `Peer`."""
        self._child.wait_until_loaded()

    def choose_setting(self, check: Check, trial_s: float, to_beat: float = 0.0) -> None:
        """Try all settings and keep only the best one.

        A setting that would be too slow even if its callers did not slow down one another is not tried further.

        Args:
            check: Called with each setting's answer to the first photo.
            trial_s: Length of a trial.
            to_beat: Images per second that the engine must reach to matter.

        Raises:
            PeerError: A trial failed; or what `check` raises.
        """
        for setting in list_settings(self.name):
            best = max(to_beat, *self.trials.values(), 0.0)
            result, rate = self._child.ask("try_out", setting=setting, window_s=trial_s, to_beat=best)
            check(f"{self.name}, {setting}", [answer_of_result(result)], 1)
            self.trials[setting] = rate
        self.setting = max(self.trials, key=self.trials.__getitem__)
        self._child.ask("choose", setting=self.setting)

    @property
    def trial_images_per_s(self) -> float:
        """Images per second of the best setting in its trial."""
        return self.trials[self.setting]

    @property
    def pid(self) -> int:
        """See `Peer`."""
        return self._child.pid

    def answer(self, photos: Sequence[Path]) -> list[Answer]:
        """See `Contender`; the photos must be all those that it is measured with."""
        results = self._child.ask("answer")
        return [answer_of_result(result) for result in results]

    def measure(self, load: Load) -> Figures:
        """See `Contender`; the engine chooses the number of callers."""
        return Figures(*self._child.ask("measure", window_s=load.window_s, warmup_s=load.warmup_s))

    def stop(self) -> None:
        """See `Peer`."""
        self._child.stop()


class _Commands:
    """The child's side: the engine in each setting; after the choice, in one."""

    def __init__(self, engine: str, files: ModelFiles, photos: Sequence[Path]) -> None:
        self._spec = files.spec
        self._pixels = [np.array(preprocess(photo.read_bytes(), files.spec.transform))[None] for photo in photos]
        self._loaded = {setting: load(files) for setting, load in list_settings(engine).items()}
        self._engine = next(iter(self._loaded.values()))

    def answer(self) -> list[Any]:
        runner = self._engine.make_runner()
        return [self._select(runner(self._engine.prepare(pixels))) for pixels in self._pixels]

    def try_out(self, setting: str, window_s: float, to_beat: float) -> tuple[Any, float]:
        """Return the result for the first photo, and images per second: an upper estimate if they are too few."""
        self._engine = engine = self._loaded[setting]
        runner, image = engine.make_runner(), engine.prepare(self._pixels[0])
        began = time.monotonic()
        result = self._select(runner(image))
        call_s = time.monotonic() - began
        rate = engine.callers / call_s
        if _FIRST_CALL * rate > to_beat:
            call_s = _time_calls(lambda: runner(image), window_s / 2)
            rate = engine.callers / call_s
            if engine.callers > 1 and rate > to_beat:
                rate, _ = self.measure(max(window_s, call_s), min(call_s, window_s))
        return result, rate

    def choose(self, setting: str) -> None:
        self._engine = self._loaded[setting]
        self._loaded = {setting: self._engine}

    def measure(self, window_s: float, warmup_s: float) -> tuple[float, float]:
        engine = self._engine
        images = [engine.prepare(pixels) for pixels in self._pixels]
        first = itertools.count()

        def make_call() -> Call:
            runner = engine.make_runner()
            turn = itertools.islice(itertools.cycle(images), next(first), None)
            return lambda: runner(next(turn))

        loop = run_closed_loop(make_call, engine.callers, window_s, warmup_s, keep_load=True)
        return loop.images_per_s, loop.percentile_ms(50)

    def _select(self, scores: Scores) -> Any:
        spec = self._spec
        return select_labels(scores[0], np.asarray(spec.thresholds, np.float32), spec.labels)


def _time_calls(call: Call, limit_s: float) -> float:
    """Return the mean seconds of the calls that start within a time, at least of one."""
    began, calls = time.monotonic(), 0
    while not calls or time.monotonic() - began < limit_s:
        call()
        calls += 1
    return (time.monotonic() - began) / calls


def _load() -> dict[str, Callable[..., Any]]:
    engine, spec, onnx, paddlex, *photos = sys.argv[1:]
    files = ModelFiles(ModelSpec.from_json(spec), Path(onnx), Path(paddlex))
    commands = _Commands(engine, files, [Path(photo) for photo in photos])
    return {name: getattr(commands, name) for name in ("answer", "try_out", "choose", "measure")}


if __name__ == "__main__":
    obey(_load)
