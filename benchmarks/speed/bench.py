"""What all contenders of one model have in common: the photos, the served model, and how a server is measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.asking import Refusal, ask, connect
from benchmarks.speed.perf_analyzer import ANY_DEVIATION, Load, PerfAnalyzer, Windows, choose_windows, write_input_data
from mlcls.errors import MlclsError
from mlcls.model.spec import ModelSpec

SERVED: Final = "served"

CALL_TIMEOUT_S: Final = 120.0

# The score of each predicted class id.
Answer = Mapping[int, float]


class PeerError(MlclsError):
    """A peer cannot be started, does not answer, or answers differently from the served model."""


@dataclasses.dataclass(frozen=True)
class ModelFiles:
    """What the contenders load.

    Attributes:
        spec: The model's spec.
        onnx: The graph that is served.
        paddlex: The PaddleX inference model that it comes from.
    """

    spec: ModelSpec
    onnx: Path
    paddlex: Path


@dataclasses.dataclass(frozen=True)
class Rate:
    """How a contender is measured.

    Attributes:
        concurrency: Requests in flight at a server; a program without a server chooses its own number of callers.
        seconds: Length of the measurement; longer for a slow model.
        image_s: How long an image takes alone, roughly.
    """

    concurrency: int
    seconds: float
    image_s: float


@dataclasses.dataclass(frozen=True)
class Figures:
    """What was measured.

    Attributes:
        images_per_s: Throughput.
        median_ms: Median latency of a call.
    """

    images_per_s: float
    median_ms: float


def answer_served(grpc_url: str, model: str, photos: Sequence[Path]) -> list[Answer]:
    """Return a served ensemble's answer to each photo, asked one after the other over gRPC.

    Raises:
        PeerError: One is refused.
    """
    answers = []
    with connect(grpc_url) as client:
        for photo in photos:
            reply = ask(client, model, [photo.read_bytes()], timeout_s=CALL_TIMEOUT_S)
            if isinstance(reply, Refusal):
                raise PeerError(f"{model}: expected labels of {photo}, got {reply.code}: {reply.message}")
            answers.append(answer_of(reply[0].result))
    return answers


def answer_of(result: Mapping[str, Any]) -> Answer:
    """Return the answer from a result in PaddleX's format, `class_ids` and `scores`."""
    return {int(index): float(score) for index, score in zip(result["class_ids"], result["scores"], strict=True)}


class Bench:
    """A served model, and what is needed to start and measure its peers.

    Attributes:
        files: The model.
        photos: JPEG files that all contenders answer and are measured with.
        images: Their content.
        work: Folder for what contenders write.
    """

    def __init__(
        self, files: ModelFiles, grpc_url: str, photos: Sequence[Path], work: Path, analyzer: PerfAnalyzer
    ) -> None:
        """Use a running server, by `host:port` of its gRPC API."""
        self.files, self.photos, self.work = files, [photo.resolve() for photo in photos], work.resolve()
        self.images = [photo.read_bytes() for photo in photos]
        self._analyzer, self._grpc_url = analyzer, grpc_url
        self._served = Load(files.spec.name, grpc_url, write_input_data(work / "served.json", self.images), 1)

    def answer_served(self, photos: Sequence[Path]) -> list[Answer]:
        """Return the served model's answers; see the function."""
        return answer_served(self._grpc_url, self.files.spec.name, photos)

    def measure_served(self, rate: Rate) -> Figures:
        """Return throughput and latency of the served model under load."""
        return self.measure_server(self._served, rate)

    def measure_server(self, load: Load, rate: Rate) -> Figures:
        """Return throughput and latency of a server in three windows of perf_analyzer."""
        load = dataclasses.replace(load, concurrency=rate.concurrency)
        windows = Windows(rate.seconds / 3, ANY_DEVIATION, 3)
        figures = self._analyzer.measure(load, choose_windows(windows, load, 1 / rate.image_s))
        return Figures(figures.images_per_s, figures.p50_ms)
