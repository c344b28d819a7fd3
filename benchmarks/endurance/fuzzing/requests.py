"""What is sent: requests of changed images with good ones in between, each known by the seed and its number."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping

from benchmarks.endurance.fuzzing.mutations import mutate


@dataclasses.dataclass(frozen=True)
class Item:
    """One image of a request.

    Attributes:
        label: What it is: a good image's name, or which file was changed and how.
        data: The file.
        is_good: Whether it is a good one, whose answer is known.
    """

    label: str
    data: bytes
    is_good: bool


def plan_request(seed: int, number: int, seeds: Mapping[str, bytes], good: Mapping[str, bytes]) -> list[Item]:
    """Return the images of one request, in order.

    Args:
        seed: Of the run.
        number: Of the request.
        seeds: Files to change, by name.
        good: Files that are mixed in, by name.
    """
    chance = random.Random(f"{seed}:{number}")
    items = [Item(*mutate(chance, seeds), is_good=False) for _ in range(chance.choice((1, 1, 2, 4, 8)))]
    for _ in range(chance.choice((0, 1, 1, 2))):
        name = chance.choice(sorted(good))
        items.insert(chance.randint(0, len(items)), Item(name, good[name], is_good=True))
    return items
