"""How many users there are over time."""

from __future__ import annotations

import dataclasses
import math
from typing import Protocol


class Curve(Protocol):
    """The number of users over time."""

    def users_at(self, elapsed_s: float) -> int | None:
        """Return how many users there are to be, or None once the test is over."""


@dataclasses.dataclass(frozen=True)
class Soak:
    """The same number of users all the time.

    Attributes:
        users: How many.
        run_time_s: How long.
    """

    users: int
    run_time_s: float

    def users_at(self, elapsed_s: float) -> int | None:
        """See `Curve`."""
        return self.users if elapsed_s < self.run_time_s else None


@dataclasses.dataclass(frozen=True)
class Ramp:
    """Stairs of equal height and length up to a number of users.

    Attributes:
        users: Of the last step.
        run_time_s: Of all steps.
        steps: How many.
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
    """A number of users, many times as many in the middle third, and the number again: does it recover?

    Attributes:
        users: Before and after.
        run_time_s: Of all three parts.
        factor: How many times as many in the middle.
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
    """Return the curve of a name: `ramp`, `soak` or `spike`."""
    if name == "ramp":
        return Ramp(users, run_time_s, steps)
    return Spike(users, run_time_s, factor) if name == "spike" else Soak(users, run_time_s)
