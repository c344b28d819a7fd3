"""The imported models of a repository: what each needs, and what is wrong with it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from mlcls.base.machine import Machine
from mlcls.engines.tensorrt.plan import check_plan
from mlcls.errors import MlclsError
from mlcls.repository.configurations import require_fresh
from mlcls.repository.manifest import Manifest
from mlcls.repository.models import Repository
from mlcls.repository.names import PLAN_FILE, STEP_SUFFIXES
from mlcls.repository.settings import DEFAULT_MODEL_SETTINGS, TARGETS, ModelSettings, Target
from mlcls.repository.triton_config import ENGINE_TARGETS

# Size of a typical encoded image, to estimate the memory for many.
TYPICAL_IMAGE_BYTES: Final = 1 << 20

# Memory of a served model; docs/how-to/doctor.md has the measurements.
_STEPS_BYTES: Final = 50_000_000
_PREPROCESS_BYTES: Final = 40_000_000
_PYTHON_ENGINE_BYTES: Final = 60_000_000
# Sizes of the model file that an engine takes before the first image: OpenVINO twice, with the graph's own copy, and
# OpenVINO within ONNX Runtime.
_WEIGHTS_IN_OPENVINO: Final = 4.0
_WEIGHTS_IN_ONNX_RUNTIME: Final = 5.5
# What one image of 448x448 takes while it is computed.
_IMAGE_BYTES: Final[Mapping[str, int]] = {
    "CLIP_vit_base_patch16_448_ML": 32_000_000,
    "PP-HGNetV2-B0_ML": 19_000_000,
    "PP-HGNetV2-B4_ML": 56_000_000,
    "PP-HGNetV2-B6_ML": 102_000_000,
    "PP-LCNet_x1_0_ML": 12_000_000,
    "ResNet50_ML": 25_000_000,
}
_IMAGE_PIXELS_BYTES: Final = 448 * 448 * 3


class Memory(NamedTuple):
    """The bytes that a served model takes: after the start, and at most, once it had its largest batch."""

    at_start: int
    at_most: int


@dataclasses.dataclass
class ImportedModel:
    """One imported model.

    Attributes:
        pixels_bytes: Size of one image between two steps.
        weights_bytes: Size of each model file of the active version's engine, by name.
        faults: What is wrong with its folders or configurations, one text each.
        architecture: PaddleX's name of its network.
        plan_faults: Why its TensorRT plan does not run here; empty if it does, or if there is none.
    """

    name: str
    pixels_bytes: int = 0
    weights_bytes: dict[str, int] = dataclasses.field(default_factory=dict)
    faults: list[str] = dataclasses.field(default_factory=list)
    plan_faults: list[str] = dataclasses.field(default_factory=list)
    settings: ModelSettings = DEFAULT_MODEL_SETTINGS
    architecture: str = ""

    def memory(self, target: Target, cores: int) -> Memory | None:
        """Return an estimate of the memory of all its processes.

        On the target `cpu`, ONNX Runtime computes a batch at once, and keeps the memory of the largest one. The targets
        `embedded` and `int8` compute each image by itself, one on each core, and warm up with as many.

        Returns:
            None if the model has no engine for the target, or if its memory is not known: that of a GPU.
        """
        weights, settings = self.weights_bytes.get(ENGINE_TARGETS[target].model_file), self.settings.of(target)
        if weights is None or target == "gpu":
            return None
        image = _IMAGE_BYTES.get(self.architecture, max(_IMAGE_BYTES.values()))
        image = image * self.pixels_bytes // _IMAGE_PIXELS_BYTES
        steps, instances = _STEPS_BYTES + _PREPROCESS_BYTES * settings.preprocess_instances, settings.engine_instances
        if target == "cpu":
            at_start = steps + int(_WEIGHTS_IN_ONNX_RUNTIME * weights) * instances
            return Memory(at_start, at_start + self.settings.max_batch_size * image * instances)
        images = (settings.engine_threads or cores) + 1  # one on each core, and a lone one on all
        engine = _PYTHON_ENGINE_BYTES + int(_WEIGHTS_IN_OPENVINO * weights) + images * image
        return Memory(steps + engine * instances, steps + engine * instances)

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
        model.architecture = version.spec.architecture
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
