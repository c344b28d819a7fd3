"""The imported models of a repository: what each needs, and what is wrong with it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from mlcls.base.machine import Machine
from mlcls.engines.tensorrt.plan import check_plan
from mlcls.errors import MlclsError
from mlcls.repository.configurations import require_fresh
from mlcls.repository.manifest import Manifest
from mlcls.repository.models import Repository
from mlcls.repository.names import PLAN_FILE, STEP_SUFFIXES
from mlcls.repository.settings import DEFAULT_MODEL_SETTINGS, TARGETS, ModelSettings

# Size of a typical encoded image, to estimate the memory for many.
TYPICAL_IMAGE_BYTES: Final = 1 << 20

# Memory of a served model, measured with all six in one server: 976 MB of FP32 weights, 4.1 GB in all processes.
_MEMORY_PER_WEIGHT: Final = 3.5
_MEMORY_PER_MODEL_BYTES: Final = 120_000_000


@dataclasses.dataclass
class ImportedModel:
    """One imported model.

    Attributes:
        pixels_bytes: Size of one image between two steps.
        weights_bytes: Size of each model file of the active version's engine, by name.
        faults: What is wrong with its folders or configurations, one text each.
        plan_faults: Why its TensorRT plan does not run here; empty if it does, or if there is none.
    """

    name: str
    pixels_bytes: int = 0
    weights_bytes: dict[str, int] = dataclasses.field(default_factory=dict)
    faults: list[str] = dataclasses.field(default_factory=list)
    plan_faults: list[str] = dataclasses.field(default_factory=list)
    settings: ModelSettings = DEFAULT_MODEL_SETTINGS

    @property
    def memory_bytes(self) -> int:
        """Memory that all its processes need; each engine instance has its own weights."""
        weights = int(_MEMORY_PER_WEIGHT * max(self.weights_bytes.values(), default=0))
        return weights * self._most("engine_instances") + _MEMORY_PER_MODEL_BYTES

    @property
    def shared_memory_bytes(self) -> int:
        """Shared memory for full batches in all its processes at once: encoded images and pixels."""
        images = self._most("preprocess_instances") * (TYPICAL_IMAGE_BYTES + self.pixels_bytes)
        return self.settings.max_batch_size * (images + self._most("engine_instances") * self.pixels_bytes)

    @property
    def queue_bytes(self) -> int:
        """Memory of a full queue, if each request has one image."""
        return self.settings.queue.max_queue_size * (TYPICAL_IMAGE_BYTES + self.pixels_bytes)

    def _most(self, setting: str) -> int:
        return max(int(getattr(self.settings.of(target), setting)) for target in TARGETS)


def read_models(root: Path, machine: Machine) -> list[ImportedModel]:
    """Return the imported models of a repository; their plans are compared with a machine."""
    repository = Repository(root)
    return [_read_model(repository, name, machine) for name in repository.models() if repository.is_imported(name)]


def _read_model(repository: Repository, name: str, machine: Machine) -> ImportedModel:
    model = ImportedModel(name)
    with _collect(model.faults):
        model.settings = repository.settings(name)
        version = repository.active(name)
        version.check()
        with _collect(model.faults):
            require_fresh(version)
        model.pixels_bytes = version.spec.transform.height * version.spec.transform.width * 3
        for suffix in STEP_SUFFIXES:
            with _collect(model.faults):
                version.verify(suffix)
        manifest = Manifest.read(version.engine_folder)
        model.weights_bytes = {record.file: manifest.files[record.file].size_bytes for record in manifest.engines}
        if PLAN_FILE in model.weights_bytes:
            with _collect(model.plan_faults):
                check_plan(version.engine_folder, PLAN_FILE, machine)
    return model


@contextlib.contextmanager
def _collect(faults: list[str]) -> Iterator[None]:
    try:
        yield
    except MlclsError as error:
        faults.append(str(error))
