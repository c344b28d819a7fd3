"""What all contenders have in common: they answer photos with labels, and the same closed loop measures them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from mlcls.errors import MlclsError
from mlcls.tuning.closed_loop import LoopFigures

# The score of each predicted class id.
Answer = Mapping[int, float]


class PeerError(MlclsError):
    """A peer cannot be started, does not answer, or answers differently from the served model."""


@dataclasses.dataclass(frozen=True)
class Load:
    """How a contender is measured.

    Attributes:
        concurrency: Callers of a server; a program without a server chooses its own number.
        window_s: Length of the window.
        warmup_s: How long the load runs before it.
    """

    concurrency: int
    window_s: float
    warmup_s: float


@dataclasses.dataclass(frozen=True)
class Figures:
    """What was measured in one window.

    Attributes:
        images_per_s: Throughput.
        median_ms: Median latency of a call; NaN if no call ended in the window.
    """

    images_per_s: float
    median_ms: float

    @classmethod
    def of_loop(cls, loop: LoopFigures) -> Figures:
        """Return the figures of a closed loop."""
        return cls(loop.images_per_s, loop.percentile_ms(50))


class Contender(Protocol):
    """Something that labels photos.

    Attributes:
        name: Its name in tables.
        setting: How it is set up, in short.
    """

    name: str
    setting: str

    def answer(self, photos: Sequence[Path]) -> list[Answer]:
        """Return the answer to each photo.

        Raises:
            PeerError: An answer is missing.
        """
        ...

    def measure(self, load: Load) -> Figures:
        """Return throughput and latency under load.

        Raises:
            PeerError: A call failed.
        """
        ...


class Peer(Contender, Protocol):
    """A contender in its own processes, which load while the caller continues."""

    @property
    def pid(self) -> int:
        """Process id of the first process; the others descend from it."""
        ...

    def wait_until_loaded(self) -> None:
        """Wait until it can answer.

        Raises:
            PeerError: It exited or took too long.
        """
        ...

    def stop(self) -> None:
        """Stop it; do nothing the second time."""
        ...


def answer_of_result(result: Mapping[str, Any]) -> Answer:
    """Return the answer from a result in PaddleX's format, `class_ids` and `scores`."""
    return {int(index): float(score) for index, score in zip(result["class_ids"], result["scores"], strict=True)}
