"""The number of users over time."""

from __future__ import annotations

import dataclasses
import math
from typing import Protocol


class Curve(Protocol):
    """A number of users over time."""

    def users_at(self, elapsed_s: float) -> int | None:
        """Return the wanted number of users, or None once the test is over."""


@dataclasses.dataclass(frozen=True)
class Soak:
    """The same number of users all the time.

    Attributes:
        users: Number of users.
        run_time_s: Length of the test.
    """

    users: int
    run_time_s: float

    def users_at(self, elapsed_s: float) -> int | None:
        """See `Curve`."""
        return self.users if elapsed_s < self.run_time_s else None


@dataclasses.dataclass(frozen=True)
class Ramp:
    """Equal steps up to a number of users.

    Attributes:
        users: Users of the last step.
        run_time_s: Length of all steps.
        steps: Number of steps.
    """

    users: int
    run_time_s: float
    steps: int = 5

    def users_at(self, elapsed_s: float) -> int | None:
        """See `Curve`."""
        if elapsed_s >= self.run_time_s:
            return None
        step = int(elapsed_s / self.run_time_s * self.steps) + 1
        return math.ceil(self.users * step / self.steps)


@dataclasses.dataclass(frozen=True)
class Spike:
    """A number of users, a multiple of it in the middle third, then the number again: does the server recover?

    Attributes:
        users: Users before and after the spike.
        run_time_s: Length of all three parts.
        factor: The multiple in the middle.
    """

    users: int
    run_time_s: float
    factor: float = 10.0

    def users_at(self, elapsed_s: float) -> int | None:
        """See `Curve`."""
        if elapsed_s >= self.run_time_s:
            return None
        in_the_middle = 1 / 3 <= elapsed_s / self.run_time_s < 2 / 3
        return math.ceil(self.users * self.factor) if in_the_middle else self.users


def choose_curve(name: str, users: int, run_time_s: float, steps: int, factor: float) -> Curve:
    """Return the curve with this name: `ramp`, `soak` or `spike`."""
    if name == "ramp":
        return Ramp(users, run_time_s, steps)
    return Spike(users, run_time_s, factor) if name == "spike" else Soak(users, run_time_s)
