"""The learning rate of each step: linear warm-up, then a cosine to almost nothing (PaddleClas's `Cosine`)."""

from __future__ import annotations

import dataclasses
import math
from typing import Final

# PaddleClas's `warmup_start_lr` and `eta_min` in its multi-label recipes.
WARMUP_START: Final = 1e-6
LOWEST: Final = 1e-10


@dataclasses.dataclass(frozen=True)
class CosineSchedule:
    """A function of the step alone, so that nothing of it has to be kept in a checkpoint but the step.

    Attributes:
        peak: Learning rate where the warm-up ends.
        total_steps: Steps of the whole training.
        warmup_steps: Steps of the warm-up, below `total_steps`.
    """

    peak: float
    total_steps: int
    warmup_steps: int

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        if step < self.warmup_steps:
            start = min(WARMUP_START, self.peak)
            return start + (self.peak - start) * step / self.warmup_steps
        progress = (step - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        lowest = min(LOWEST, self.peak)
        return lowest + (self.peak - lowest) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
