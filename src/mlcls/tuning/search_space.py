"""The settings that are worth a try on a machine, one knob at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Final

from mlcls.repository.settings import DEFAULT_MODEL_SETTINGS, THREADED_TARGETS, ServingSettings, Target

# Engine queue delays that are tried, in microseconds.
QUEUE_DELAYS: Final = (0, 1000, 5000)

# Engines on one GPU that are tried: more of them only take its memory.
MOST_GPU_ENGINES: Final = 4

# Up to so many cores each number of processes is tried, beyond them powers of two.
_FEW_CORES: Final = 4

# Callers for each core beyond which only the queue grows, and on a GPU, which takes them in batches.
_CALLERS_PER_CORE: Final = 8
_LEAST_CALLERS_OF_GPU: Final = 128


@dataclasses.dataclass(frozen=True)
class Knob:
    """One thing that is varied.

    Attributes:
        name: What to call it.
        vary: Gives the challengers of an incumbent, which differ from it in this alone.
    """

    name: str
    vary: Callable[[ServingSettings], list[ServingSettings]]


def list_knobs(target: Target, cores: int) -> list[Knob]:
    """Return the knobs of a target on a machine, the ones that matter most first."""

    def vary_engine(incumbent: ServingSettings) -> list[ServingSettings]:
        shapes = engine_shapes(target, cores)
        found = [dataclasses.replace(incumbent, engine_instances=n, engine_threads=threads) for n, threads in shapes]
        return [settings for settings in found if settings != incumbent]

    def vary_preprocess(incumbent: ServingSettings) -> list[ServingSettings]:
        counts = sorted(count_series(cores) | {cores + 1})
        found = [dataclasses.replace(incumbent, preprocess_instances=count) for count in counts]
        return [settings for settings in found if settings != incumbent]

    def vary_delay(incumbent: ServingSettings) -> list[ServingSettings]:
        found = [dataclasses.replace(incumbent, engine_queue_delay_microseconds=delay) for delay in QUEUE_DELAYS]
        return [settings for settings in found if settings != incumbent]

    return [
        Knob("engine", vary_engine),
        Knob("preprocess instances", vary_preprocess),
        Knob("engine queue delay", vary_delay),
    ]


def engine_shapes(target: Target, cores: int) -> list[tuple[int, int]]:
    """Return engines and threads of each; their product is at most the number of cores; 0 threads means all cores.

    Only the targets of this project's own engine take a number of threads.
    """
    if target == "gpu":
        return [(count, 0) for count in range(1, MOST_GPU_ENGINES + 1)]
    counts = sorted(count_series(cores))
    if target not in THREADED_TARGETS:
        return [(count, 0) for count in counts]
    shapes = [(1, 0)]
    for count in counts:
        # all cores, or half of them, which leaves the others to preprocess
        for threads in (cores // count, cores // count // 2):
            if threads >= 1 and (count, threads) not in ((1, cores), *shapes):
                shapes.append((count, threads))
    return shapes


def count_series(cores: int) -> set[int]:
    """Return numbers of processes that are tried: all up to 4, then powers of two, and the number of cores."""
    powers = {1 << power for power in range(cores.bit_length())}
    return {count for count in {*range(1, _FEW_CORES + 1), *powers, cores} if count <= cores}


def list_concurrencies(target: Target, cores: int) -> list[int]:
    """Return numbers of callers that are tried: 1, 2, 3, 4, 6, 8, 12, 16, 24 and so on, ascending.

    No more than wait before a step of the ensemble at most, since Triton refuses those beyond.
    """
    most = min(
        max(_CALLERS_PER_CORE * cores, _LEAST_CALLERS_OF_GPU if target == "gpu" else 0),
        DEFAULT_MODEL_SETTINGS.queue.max_queue_size,
    )
    series = {size << power for size in (2, 3) for power in range(most.bit_length())} | {1}
    return sorted(count for count in series if count <= most)
