"""PaddleX in process: `create_model(...).predict(path)`, in a child process in `.venv-paddlex`.

Run as a module by that environment's Python, this file is the child; it imports only what PaddleX installs.
"""

from __future__ import annotations

import hashlib
import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.speed.peers.contender import Answer, Figures, Load, answer_of_result
from benchmarks.speed.peers.line_child import LineChild, obey
from mlcls.tuning.closed_loop import run_closed_loop


class PaddlexPredict:
    """The parent's side. One photo per call, one call after the other."""

    name = "PaddleX predict()"

    def __init__(self, model: Path, folder: Path, photos: Sequence[Path]) -> None:
        """Start a child, which loads the model.

        Args:
            model: A PaddleX inference model.
            folder: Folder for PaddleX's cache.
            photos: What it is measured with.

        Raises:
            PeerError: PaddleX's Python does not exist.
        """
        from benchmarks.speed.peers.paddlex_server import PADDLEX_BIN, paddlex_variables

        variables = paddlex_variables(folder / "paddlex_cache")
        self.setting = f"oneDNN, {variables['PADDLE_PDX_CPU_NUM_THREADS']} threads"
        self._photos = [str(photo.resolve()) for photo in photos]
        self._child = LineChild(self.name, PADDLEX_BIN / "python", __name__, str(model.resolve()), **variables)

    @property
    def pid(self) -> int:
        """See `Peer`."""
        return self._child.pid

    def wait_until_loaded(self) -> None:
        """See `Peer`."""
        self._child.wait_until_loaded()

    def answer(self, photos: Sequence[Path]) -> list[Answer]:
        """See `Contender`."""
        results = self._child.ask("answer", photos=[str(photo.resolve()) for photo in photos])
        return [answer_of_result(result) for result in results]

    def measure(self, load: Load) -> Figures:
        """See `Contender`; the concurrency is 1, whatever the load says."""
        return Figures(*self._child.ask("measure", photos=self._photos, window_s=load.window_s, warmup_s=load.warmup_s))

    def versions(self) -> dict[str, str]:
        """Return the versions of paddlex and paddlepaddle."""
        versions: dict[str, str] = self._child.ask("versions")
        return versions

    def pixel_digests(self, photos: Sequence[Path]) -> list[str]:
        """Return the SHA-256 of each photo's pixels (H, W, 3) uint8 RGB from PaddleX's own reader and resize."""
        digests: list[str] = self._child.ask("pixel_digests", photos=[str(photo.resolve()) for photo in photos])
        return digests

    def stop(self) -> None:
        """See `Peer`."""
        self._child.stop()


class _Commands:
    """The child's side."""

    def __init__(self, model: Path) -> None:
        import yaml
        from paddlex import create_model

        name = yaml.safe_load((model / "inference.yml").read_text(encoding="utf-8"))["Global"]["model_name"]
        self._model = create_model(model_name=name, model_dir=str(model), device="cpu")

    def versions(self) -> dict[str, str]:
        from importlib.metadata import version

        return {name: version(name) for name in ("paddlex", "paddlepaddle")}

    def answer(self, photos: list[str]) -> list[Any]:
        results = []
        for photo in photos:
            (result,) = self._model.predict(photo, batch_size=1)
            results.append({key: result.json["res"][key] for key in ("class_ids", "scores")})
        return results

    def measure(self, photos: list[str], window_s: float, warmup_s: float) -> tuple[float, float]:
        turn = itertools.cycle(photos)
        loop = run_closed_loop(
            lambda: lambda: list(self._model.predict(next(turn), batch_size=1)), 1, window_s, warmup_s
        )
        return loop.images_per_s, loop.percentile_ms(50)

    def pixel_digests(self, photos: list[str]) -> list[str]:
        steps = self._model._predictor.preprocessors  # `create_model` returns a wrapper without access to them
        pixels = [steps["Resize"](imgs=steps["Read"](imgs=[photo]))[0] for photo in photos]
        return [hashlib.sha256(image.tobytes()).hexdigest() for image in pixels]


def _load() -> dict[str, Callable[..., Any]]:
    commands = _Commands(Path(sys.argv[1]))
    return {name: getattr(commands, name) for name in ("versions", "answer", "measure", "pixel_digests")}


if __name__ == "__main__":
    obey(_load)
