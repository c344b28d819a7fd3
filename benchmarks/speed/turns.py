"""Measurements in turns: neighbors in time are compared, so that a noisy machine affects both alike."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence

from mlcls.errors import MlclsError


@dataclasses.dataclass(frozen=True)
class Window:
    """One measurement.

    Attributes:
        name: What was measured.
        value: The figure; NaN if it could not be measured.
    """

    name: str
    value: float


@dataclasses.dataclass(frozen=True)
class Spread:
    """Several values of one figure.

    Attributes:
        values: The values in chronological order, at least one.
    """

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise MlclsError("Expected at least one measured value, got none.")

    @property
    def median(self) -> float:
        """The median."""
        return statistics.median(self.values)

    @property
    def lowest(self) -> float:
        """The lowest value."""
        return min(self.values)

    @property
    def highest(self) -> float:
        """The highest value."""
        return max(self.values)


@dataclasses.dataclass(frozen=True)
class Turns:
    """Windows in chronological order."""

    windows: tuple[Window, ...]

    def values(self, name: str) -> Spread:
        """Return all measured figures of one name.

        Raises:
            MlclsError: There is none.
        """
        return _spread_of(window.value for window in self.windows if window.name == name)

    def ratio(self, name: str, base: str) -> Spread:
        """Return the figures of `name` divided by those of `base`, once for each pair of neighbors.

        Raises:
            MlclsError: There is no such pair.
        """
        ratios = []
        for pair in zip(self.windows, self.windows[1:], strict=False):
            by_name = {window.name: window.value for window in pair}
            if by_name.keys() == {name, base}:
                ratios.append(by_name[name] / by_name[base] if by_name[base] else math.nan)
        return _spread_of(ratios)


def order_of_turns(first: str, others: Sequence[str], turns: int) -> Iterator[str]:
    """Yield names in the order of measurement: A B A C A B A C A, so that `first` is on both sides of each other name.

    Args:
        first: What the others are compared with.
        others: The others, each once per turn.
        turns: Number of turns, at least 1.
    """
    yield first
    for _ in range(turns):
        for other in others:
            yield other
            yield first


def take_turns(
    measure: Callable[[str], float],
    first: str,
    others: Sequence[str],
    turns: int,
) -> Turns:
    """Measure in turns.

    Args:
        measure: Measures one window for a name.
        first: See `order_of_turns`.
        others: See `order_of_turns`.
        turns: See `order_of_turns`.
    """
    return Turns(tuple(Window(name, measure(name)) for name in order_of_turns(first, others, turns)))


def _spread_of(values: Iterable[float]) -> Spread:
    return Spread(tuple(value for value in values if not math.isnan(value)))
