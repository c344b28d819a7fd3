"""Runners: one protocol for everything that computes scores from `pixels`, on Paddle, ONNX Runtime or OpenVINO."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from mlcls.conversion.onnx_file import check_onnx_file
from mlcls.errors import MissingExtraError, ModelFormatError
from mlcls.images.transforms import normalize, preprocess
from mlcls.model.contract import TENSORS
from mlcls.model.postprocess import apply_sigmoid
from mlcls.model.spec import ModelSpec
from mlcls.paddle.model import PaddleXModel
from mlcls.paddle.predictor import PaddlePredictor

Pixels = npt.NDArray[np.uint8]
Scores = npt.NDArray[np.float32]

# Decoded images that a `DecodingRunner` keeps: 38 MB at 448x448.
_DECODED_IMAGES: Final = 64

# Threads within one operation.
_THREADS: Final = 2


class Runner(Protocol):
    """Computes scores from decoded images."""

    name: str

    def scores(self, pixels: Pixels) -> Scores:
        """Return scores (N, num_labels) float32 of `pixels` (N, H, W, 3) uint8 RGB."""
        ...


class ImageRunner(Protocol):
    """Computes scores from encoded images.

    Attributes:
        name: Its name in reports.
        labels: Label of each class id.
        concurrency: How many calls it takes at once; 1 if calls must follow each other.
    """

    name: str
    labels: tuple[str, ...]
    concurrency: int

    def scores(self, images: Sequence[bytes]) -> Scores:
        """Return scores (N, num_labels) float32 of N encoded images."""
        ...


class DecodingRunner:
    """An `ImageRunner` that decodes images as the server does, for a runner that takes pixels."""

    concurrency = 1

    def __init__(self, runner: Runner, spec: ModelSpec) -> None:
        self.name = runner.name
        self.labels = spec.labels
        self._runner = runner
        self._transform = spec.transform
        # the gate runs the same images many times
        self._decode = functools.lru_cache(maxsize=_DECODED_IMAGES)(self.decode)

    def decode(self, image: bytes) -> Pixels:
        """Return an encoded image as (H, W, 3) uint8 RGB; safe to call from several threads at once.

        Raises:
            ImageError: It cannot be decoded.
        """
        return preprocess(image, self._transform)

    def score_pixels(self, pixels: Pixels) -> Scores:
        """Return scores (N, num_labels) float32 of decoded images (N, H, W, 3) uint8 RGB."""
        return self._runner.scores(pixels)

    def scores(self, images: Sequence[bytes]) -> Scores:
        """Return scores (N, num_labels) float32 of N encoded images.

        Raises:
            ImageError: One cannot be decoded.
        """
        return self._runner.scores(np.stack([self._decode(image) for image in images]))


class PaddleRunner:
    """The original graph on Paddle Inference, on the CPU: the reference for a conversion."""

    name = "paddle"

    def __init__(self, model: PaddleXModel, spec: ModelSpec) -> None:
        """Load the graph; `source_activation` of its spec must be set, as its outputs may be scores or logits.

        Raises:
            ModelFormatError: Paddle cannot load the graph.
            MissingExtraError: paddlepaddle is not installed.
        """
        if spec.source_activation is None:
            raise ValueError("spec.source_activation: expected 'sigmoid' or 'none', got None; convert the graph first.")
        self._graph, self._spec = PaddlePredictor(model, _THREADS), spec

    def scores(self, pixels: Pixels) -> Scores:
        """Return scores (N, num_labels) float32 of `pixels` (N, H, W, 3) uint8 RGB, normalized as PaddleX does."""
        output = self._graph.run(normalize(pixels, self._spec.transform))
        return apply_sigmoid(output) if self._spec.source_activation == "none" else np.asarray(output, np.float32)


class OnnxRuntimeRunner:
    """The served graph on ONNX Runtime's CPU provider."""

    name = "onnxruntime"

    def __init__(self, model: Path | bytes, spec: ModelSpec) -> None:
        """Load the graph from the ONNX file or its content; the spec, which every runner of a file takes, is not read.

        Raises:
            ModelFormatError: The file is incomplete, or ONNX Runtime cannot load the graph.
            MissingExtraError: onnxruntime is not installed.
        """
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise MissingExtraError("convert", "onnxruntime") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = _THREADS
        options.log_severity_level = 3
        # the gate runs batches of many sizes: free what the largest one needed
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = False
        if isinstance(model, Path):
            check_onnx_file(model)
        source = model if isinstance(model, bytes) else str(model)
        try:
            self._session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions have no common public base
            raise ModelFormatError(f"ONNX Runtime cannot load the graph: {error}") from error

    def scores(self, pixels: Pixels) -> Scores:
        """Return scores (N, num_labels) float32 of `pixels` (N, H, W, 3) uint8 RGB."""
        return apply_sigmoid(self._session.run([TENSORS.logits], {TENSORS.pixels: pixels})[0])


class OpenVinoRunner:
    """The served graph on OpenVINO, on the CPU, as the embedded server runs it."""

    name = "openvino"

    def __init__(self, model: Path, spec: ModelSpec, precision: str = "f32") -> None:
        """Load the graph; see `mlcls.engines.openvino.OpenVinoEngine`."""
        from mlcls.engines.openvino import OpenVinoEngine

        if precision != "f32":
            self.name = f"openvino-{precision}"
        self._engine = OpenVinoEngine(model, spec, precision=precision)

    def scores(self, pixels: Pixels) -> Scores:
        """Return scores (N, num_labels) float32 of `pixels` (N, H, W, 3) uint8 RGB."""
        return apply_sigmoid(self._engine.logits(pixels))
