"""Measurements in turns: neighbors in time are compared, so that a noisy machine affects both alike."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

# Names and figures in chronological order; None for what could not be measured.
Turns = list[tuple[str, float | None]]


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


def take_turns(measure: Callable[[str], float | None], first: str, others: Sequence[str], turns: int) -> Turns:
    """Measure in turns, see `order_of_turns`."""
    return [(name, measure(name)) for name in order_of_turns(first, others, turns)]


def values_of(turns: Turns, name: str) -> list[float]:
    """Return all measured figures of one name."""
    return [value for found, value in turns if found == name and value is not None]


def ratios_of(turns: Turns, name: str, base: str) -> list[float]:
    """Return the figures of `name` divided by those of `base`, once for each pair of neighbors."""
    ratios = []
    for pair in itertools.pairwise(turns):
        by_name = dict(pair)
        if by_name.keys() == {name, base}:
            value, other = by_name[name], by_name[base]
            if value is not None and other:
                ratios.append(value / other)
    return ratios
