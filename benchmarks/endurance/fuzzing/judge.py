"""What the library itself makes of an image, in a separate process: a crash there must not end the run."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from mlcls.images.settings import ImageSettings
from mlcls.model.spec import ModelSpec

# In the process that judges: the spec, the runner and the settings.
_model: dict[str, Any] = {}


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The expected answer to one image.

    Attributes:
        outcome: `OK`, or the reason of the refusal.
        text: The text of the refusal.
        scores: (num_labels,) float32, unless the image is refused.
    """

    outcome: str
    text: str = ""
    scores: npt.NDArray[np.float32] | None = None


class Judge:
    """Decodes and scores images with the served model's files, but without the server."""

    def __init__(self, spec: ModelSpec, weights: Path, settings: ImageSettings) -> None:
        """Create a judge; its process starts with the first images.

        Args:
            spec: The served model's spec.
            weights: Its ONNX file.
            settings: Its image settings.
        """
        self._arguments = (spec.to_json(), str(weights), settings)
        self._pool: ProcessPoolExecutor | None = None

    def judge(self, images: Sequence[bytes]) -> list[Verdict] | str:
        """Return the verdicts in order, or why there are none: the process ended or raised an unexpected error."""
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(1, context, _prepare, self._arguments)
        try:
            return self._pool.submit(_judge, list(images)).result()
        except BrokenProcessPool:
            self._pool = None
            return "the process that decodes these images without the server ended"
        except Exception as error:
            return f"decoding these images without the server raised {type(error).__name__}: {error}"

    def __enter__(self) -> Judge:
        """Return the judge itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def _prepare(spec: str, weights: str, settings: ImageSettings) -> None:
    import cv2

    from mlcls.engines.runners import OpenVinoRunner

    cv2.setNumThreads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libpng, libjpeg and cv2 complain there about each image
    _model["settings"] = settings
    _model["spec"] = ModelSpec.from_json(spec)
    _model["runner"] = OpenVinoRunner(Path(weights), _model["spec"])


def _judge(images: list[bytes]) -> list[Verdict]:
    from mlcls.errors import ImageError
    from mlcls.images.transforms import preprocess

    verdicts = []
    for image in images:
        try:
            pixels = preprocess(image, _model["spec"].transform, _model["settings"])
        except ImageError as error:
            verdicts.append(Verdict(error.reason, str(error)))
        else:
            verdicts.append(Verdict("OK", scores=_model["runner"].scores(pixels[None])[0]))
    return verdicts
