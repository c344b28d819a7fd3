"""The requests of a run, each known by the seed and its number, and the journal of what became of them."""

from __future__ import annotations

import dataclasses
import json
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.endurance.fuzzing.mutations import mutate


@dataclasses.dataclass(frozen=True)
class Item:
    """One image of a request.

    Attributes:
        label: A good image's name, or which file was changed and how.
        data: The file.
        is_good: Whether it is a good image, whose answer is known.
    """

    label: str
    data: bytes
    is_good: bool


def plan_request(seed: int, number: int, seeds: Mapping[str, bytes], good: Mapping[str, bytes]) -> list[Item]:
    """Return the images of one request, in order.

    Args:
        seed: Seed of the run.
        number: Number of the request.
        seeds: Files to change, by name.
        good: Files to mix in, by name.
    """
    chance = random.Random(f"{seed}:{number}")
    items = [Item(*mutate(chance, seeds), is_good=False) for _ in range(chance.choice((1, 1, 2, 4, 8)))]
    for _ in range(chance.choice((0, 1, 1, 2))):
        name = chance.choice(sorted(good))
        items.insert(chance.randint(0, len(items)), Item(name, good[name], is_good=True))
    return items


@dataclasses.dataclass(frozen=True)
class Problem:
    """Something that must not happen.

    Attributes:
        kind: `crash`, `hang`, `wrong answer` or `failure`.
        text: What was expected and what was received.
    """

    kind: str
    text: str


@dataclasses.dataclass(frozen=True)
class RequestRecord:
    """The outcome of one request.

    Attributes:
        number: Its number; together with the seed of the run, it reproduces the request.
        outcomes: How many of its changed images had each outcome: `OK` or a reason.
        good: Number of good images in it.
        seconds: How long the answer took.
        problems: What was wrong.
    """

    number: int
    outcomes: dict[str, int]
    good: int
    seconds: float
    problems: tuple[Problem, ...] = ()

    @property
    def images(self) -> int:
        """Number of changed images."""
        return sum(self.outcomes.values())


class Journal:
    """The records of an unfinished run in a file, so that it can continue after an interruption."""

    def __init__(self, path: Path) -> None:
        """Read the existing records; an incomplete last line is dropped."""
        self._path = path
        self.records: list[RequestRecord] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines if line.endswith("\n")]
        if len(whole) < len(lines):
            path.write_text("".join(whole), encoding="utf-8")
        for line in whole:
            values = json.loads(line)
            problems = tuple(Problem(**problem) for problem in values.pop("problems"))
            self.records.append(RequestRecord(**values, problems=problems))

    def add(self, records: Iterable[RequestRecord]) -> None:
        """Append records."""
        records = list(records)
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(dataclasses.asdict(record)) + "\n" for record in records)
        self.records += records

    def finish(self) -> None:
        """Remove the file, so that the next run starts over."""
        self._path.unlink(missing_ok=True)


def save_request(folder: Path, number: int, items: Sequence[Item]) -> Path:
    """Write the images of a request, to send them again or look at them."""
    target = folder / f"request-{number:06}"
    target.mkdir(parents=True, exist_ok=True)
    for index, item in enumerate(items):
        (target / f"{index:02}.bin").write_bytes(item.data)
    (target / "labels.txt").write_text("".join(f"{item.label}\n" for item in items), encoding="utf-8")
    return target


def summarize(records: Sequence[RequestRecord]) -> dict[str, Any]:
    """Return the figures of a run."""
    outcomes: Counter[str] = Counter()
    problems: Counter[str] = Counter({"crash": 0, "hang": 0, "wrong answer": 0, "failure": 0})
    for record in records:
        outcomes.update(record.outcomes)
        problems.update(problem.kind for problem in record.problems)
    return {
        "requests": len(records),
        "images": sum(outcomes.values()),
        "good_images": sum(record.good for record in records),
        "outcomes": dict(outcomes.most_common()),
        "slowest_s": round(max((record.seconds for record in records), default=0.0), 3),
        "problems": dict(problems),
    }
