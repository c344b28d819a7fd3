"""What is found when one model is compared with its peers."""

from __future__ import annotations

import dataclasses

from benchmarks.speed.peers.contender import Load
from benchmarks.speed.peers.engine_settings import ENGINES
from benchmarks.speed.turns import Turns
from mlcls.errors import MlclsError


@dataclasses.dataclass
class Comparison:
    """What was found about one model.

    Attributes:
        name: The model's.
        load: How it was measured.
        turns: Throughput in images per second, in turns.
        latency_turns: Median latency in milliseconds at concurrency 1, in turns; None where it was not measured.
        settings: How each peer was set up.
        trials: Images per second of each setting of each engine that was tried.
        engines: Names of the bare engines that are right.
        errors: What could not be measured, and why, by peer.
        pixel_digests: SHA-256 of the pixels that PaddleX sees in each photo.
        versions: Versions of PaddleX and of its Paddle.
    """

    name: str
    load: Load
    turns: Turns = dataclasses.field(default_factory=lambda: Turns(()))
    latency_turns: Turns | None = None
    settings: dict[str, str] = dataclasses.field(default_factory=dict)
    trials: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    engines: list[str] = dataclasses.field(default_factory=list)
    errors: dict[str, str] = dataclasses.field(default_factory=dict)
    pixel_digests: list[str] = dataclasses.field(default_factory=list)
    versions: dict[str, str] = dataclasses.field(default_factory=dict)

    def fastest_engine(self) -> str:
        """Return the bare engine with the highest throughput in turns.

        Raises:
            MlclsError: None was measured; or one failed, which could have been the fastest.
        """
        failed = [name for name in ENGINES if name in self.errors]
        if failed or not self.engines:
            raise MlclsError(f"the fastest engine is not known; failed: {', '.join(failed) or 'all'}")
        return max(self.engines, key=lambda name: self.turns.values(name).median)
