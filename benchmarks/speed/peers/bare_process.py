"""The fastest plain program: decode, resize, OpenVINO and labels in one process, one thread per core, no server.

Run as a module, this file is the child. It decodes with the project's own code, so that the pixels are the same.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.speed.peers.contender import Answer, Figures, Load, answer_of_result
from benchmarks.speed.peers.engine_settings import ModelFiles, cores, load_openvino
from benchmarks.speed.peers.line_child import LineChild, obey
from mlcls.images.transforms import preprocess
from mlcls.model.postprocess import select_labels
from mlcls.model.spec import ModelSpec
from mlcls.tuning.closed_loop import Call, run_closed_loop


class BareProcess:
    """The parent's side.

    Each core has a thread that takes a photo through all steps on an OpenVINO stream of one thread, so that no core
    waits for another. If it is faster, there are twice as many threads: one decodes while another's image is computed.

    Attributes:
        setting: Which of the two.
        trials: Images per second of both; empty before `choose_threads`.
    """

    name = "bare process"

    def __init__(self, onnx: Path, spec: ModelSpec, photos: Sequence[Path]) -> None:
        """Start a child, which loads the model.

        Args:
            onnx: The graph that is served.
            spec: The model's spec.
            photos: What it is measured with.
        """
        paths = [str(path.resolve()) for path in (onnx, *photos)]
        self._child = LineChild(self.name, Path(sys.executable), __name__, spec.to_json(), *paths)
        self._by_setting = {f"{count} threads, {cores()} streams": count for count in (cores(), 2 * cores())}
        self.setting, self._callers = next(iter(self._by_setting.items()))
        self.trials: dict[str, float] = {}

    @property
    def pid(self) -> int:
        """See `Peer`."""
        return self._child.pid

    def wait_until_loaded(self) -> None:
        """See `Peer`."""
        self._child.wait_until_loaded()

    def choose_threads(self, trial_s: float) -> None:
        """Try both numbers of threads, each for `trial_s` seconds, and keep the faster one.

        Raises:
            PeerError: A trial failed.
        """
        for setting, callers in self._by_setting.items():
            self._callers = callers
            self.trials[setting] = self.measure(Load(callers, trial_s, trial_s / 2)).images_per_s
        self.setting = max(self.trials, key=self.trials.__getitem__)
        self._callers = self._by_setting[self.setting]

    def answer(self, photos: Sequence[Path]) -> list[Answer]:
        """See `Contender`."""
        results = self._child.ask("answer", photos=[str(photo.resolve()) for photo in photos])
        return [answer_of_result(result) for result in results]

    def measure(self, load: Load) -> Figures:
        """See `Contender`; it has as many callers as threads."""
        arguments = {"callers": self._callers, "window_s": load.window_s, "warmup_s": load.warmup_s}
        return Figures(*self._child.ask("measure", **arguments))

    def stop(self) -> None:
        """See `Peer`."""
        self._child.stop()


class _Commands:
    """The child's side."""

    def __init__(self, spec: ModelSpec, onnx: Path, photos: Sequence[Path]) -> None:
        import cv2

        cv2.setNumThreads(1)  # the callers are the parallelism
        self._spec = spec
        self._engine = load_openvino(ModelFiles(spec, onnx, onnx.parent), streams=cores())
        self._images = [photo.read_bytes() for photo in photos]
        self._thresholds = np.asarray(spec.thresholds, np.float32)

    def answer(self, photos: list[str]) -> list[Any]:
        label = self._make_labeler()
        return [label(Path(photo).read_bytes()) for photo in photos]

    def measure(self, callers: int, window_s: float, warmup_s: float) -> tuple[float, float]:
        first = itertools.count()

        def make_call() -> Call:
            label = self._make_labeler()
            turn = itertools.islice(itertools.cycle(self._images), next(first), None)
            return lambda: label(next(turn))

        loop = run_closed_loop(make_call, callers, window_s, warmup_s, keep_load=True)
        return loop.images_per_s, loop.percentile_ms(50)

    def _make_labeler(self) -> Callable[[bytes], dict[str, list[Any]]]:
        runner, spec = self._engine.make_runner(), self._spec

        def label(image: bytes) -> dict[str, list[Any]]:
            pixels = preprocess(image, spec.transform)[None]
            return select_labels(runner(pixels)[0], self._thresholds, spec.labels)

        return label


def _load() -> dict[str, Callable[..., Any]]:
    spec, onnx, *photos = sys.argv[1:]
    commands = _Commands(ModelSpec.from_json(spec), Path(onnx), [Path(photo) for photo in photos])
    return {"answer": commands.answer, "measure": commands.measure}


if __name__ == "__main__":
    obey(_load)
