"""How much memory a served model takes, from its facts and settings."""

from __future__ import annotations

from typing import Final

from mlcls.machine_facts import ServedModelFacts
from mlcls.repository.settings import TARGETS

#: An encoded image, as most are; for sizing memory that holds many.
TYPICAL_IMAGE_BYTES: Final = 1 << 20

#: Memory of a served model: measured with all six in one server, 976 MB of FP32 weights and 4.1 GB in all processes.
MEMORY_PER_WEIGHT: Final = 3.5
MEMORY_PER_MODEL_BYTES: Final = 120_000_000


def needed_memory_bytes(model: ServedModelFacts) -> int:
    """Memory of all processes; each engine has weights of its own."""
    engine = int(MEMORY_PER_WEIGHT * max(model.weights_bytes.values(), default=0))
    return engine * _most_instances(model)[1] + MEMORY_PER_MODEL_BYTES


def needed_shared_memory_bytes(model: ServedModelFacts) -> int:
    """Full batches in each process that runs at once: encoded and decoded images, then pixels."""
    preprocess, engine = _most_instances(model)
    batch = model.settings.max_batch_size
    return preprocess * batch * (TYPICAL_IMAGE_BYTES + model.pixels_bytes) + engine * batch * model.pixels_bytes


def _most_instances(model: ServedModelFacts) -> tuple[int, int]:
    """Processes of preprocess and of the engine, on the target that has most."""
    settings = [model.settings.of(target) for target in TARGETS]
    return max(each.preprocess_instances for each in settings), max(each.engine_instances for each in settings)
