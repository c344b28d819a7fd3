"""The settings that are worth trying on a machine, one knob at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from mlcls.repository.settings import DEFAULT_MODEL_SETTINGS, THREADED_TARGETS, Target

# Engine queue delays to try, in microseconds.
QUEUE_DELAYS: Final = (0, 1000, 5000)

# Engines to try on one GPU; more only take memory.
MAX_GPU_ENGINES: Final = 4

# Every number of processes up to this one is tried, and powers of two beyond.
_FEW_CORES: Final = 4

# With more callers per core, only the queue grows. A GPU, which takes them in batches, gets at least this many.
_CALLERS_PER_CORE: Final = 8
_MIN_GPU_CALLERS: Final = 128

# Values of `ServingSettings` to try, by field.
Change = Mapping[str, Any]


def list_knobs(target: Target, cores: int) -> dict[str, Sequence[Change]]:
    """Return the changes to try on a machine, by the knob's name, the most important knob first."""
    shapes, counts = engine_shapes(target, cores), sorted(count_series(cores) | {cores + 1})
    return {
        "engine": [{"engine_instances": count, "engine_threads": threads} for count, threads in shapes],
        "preprocess instances": [{"preprocess_instances": count} for count in counts],
        "engine queue delay": [{"engine_queue_delay_microseconds": delay} for delay in QUEUE_DELAYS],
    }


def engine_shapes(target: Target, cores: int) -> list[tuple[int, int]]:
    """Return pairs of engine instances and threads per instance, at most the number of cores together.

    0 threads means all cores. Only the targets of this project's own engine have a number of threads.
    """
    if target == "gpu":
        return [(count, 0) for count in range(1, MAX_GPU_ENGINES + 1)]
    counts = sorted(count_series(cores))
    if target not in THREADED_TARGETS:
        return [(count, 0) for count in counts]
    # all cores, or half of them, which leaves the rest to preprocess
    shapes = [(count, threads) for count in counts for threads in (cores // count, cores // count // 2) if threads]
    return list(dict.fromkeys([(1, 0), *(shape for shape in shapes if shape != (1, cores))]))


def count_series(cores: int) -> set[int]:
    """Return the numbers of processes to try: all up to 4, then powers of two, and the number of cores."""
    powers = {1 << power for power in range(cores.bit_length())}
    return {count for count in {*range(1, _FEW_CORES + 1), *powers, cores} if count <= cores}


def list_concurrencies(target: Target, cores: int) -> list[int]:
    """Return the numbers of callers to try: 1, 2, 3, 4, 6, 8, 12, 16, 24 and so on, ascending.

    They stay within a step's queue, beyond which Triton refuses requests.
    """
    most = max(_CALLERS_PER_CORE * cores, _MIN_GPU_CALLERS if target == "gpu" else 0)
    most = min(most, DEFAULT_MODEL_SETTINGS.queue.max_queue_size)
    series = {size << power for size in (2, 3) for power in range(most.bit_length())} | {1}
    return sorted(count for count in series if count <= most)
