"""`serving.json`: the settings of a served model that may differ between machines; the configurations follow from it.

It is in the ensemble's folder and belongs to the model, not to one version of it: later versions are served with the
same settings. A target that it does not name is served with the defaults, as is a model without the file. `mlcls tune`
writes it; after an edit, `mlcls repository` writes the configurations.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal, get_args

import msgspec
from msgspec import UNSET, Meta, UnsetType

from mlcls.base.documents import Document, VersionedDocument, decode, to_json
from mlcls.errors import ConfigError
from mlcls.images.settings import DEFAULT_IMAGE_SETTINGS, ImageSettings

Target = Literal["embedded", "cpu", "int8", "gpu"]
TARGETS: Final[tuple[Target, ...]] = get_args(Target)

# In what the target `embedded` computes.
EnginePrecision = Literal["f32", "bf16"]
ENGINE_PRECISIONS: Final[tuple[EnginePrecision, ...]] = get_args(EnginePrecision)

SETTINGS_FILE: Final = "serving.json"
SETTINGS_REMEDY: Final = "fix it, or restore the defaults: mlcls tune MODEL --reset"

# Most images in one request, and in one batch that Triton forms; the gate and the TensorRT plans support no more.
MAX_BATCH_SIZE: Final = 32

# Targets whose engine is OpenVINO in this project's own backend; the number of threads can be set for these only.
THREADED_TARGETS: Final[tuple[Target, ...]] = ("embedded", "int8")

_Count = Annotated[int, Meta(ge=1, le=256)]
_Delay = Annotated[int, Meta(ge=0, le=10_000)]
_Text = Annotated[str, Meta(min_length=1)]


class TuningRecord(Document, frozen=True):
    """On how many cores and when (ISO 8601, UTC) a target's settings were measured, and the report's file name."""

    cores: Annotated[int, Meta(ge=1, le=1 << 20)]
    date: _Text
    report: _Text


class ServingSettings(Document, frozen=True):
    """How a model is served on one target.

    Attributes:
        preprocess_instances: Processes that decode; each uses one core, and more with low priority for large images.
        engine_instances: Engines that compute at the same time, each with its own weights in memory.
        engine_threads: Threads of one engine on the targets `embedded` and `int8`; 0 for all cores.
        preprocess_queue_delay_microseconds: How long a request waits for others before it is decoded.
        engine_queue_delay_microseconds: How long the batcher waits for a batch to fill. On a CPU it does not by
            default: there, a batch is no faster than its images one by one.
        engine_precision: `f32`, or `bf16` on the target `embedded`. bf16 is faster but needs a processor with units for
            it, and its scores differ from PaddleX's.
        tuned: Where the settings were measured, in a file only.
    """

    preprocess_instances: _Count = 2
    engine_instances: _Count = 1
    engine_threads: Annotated[int, Meta(ge=0, le=1024)] = 0
    preprocess_queue_delay_microseconds: _Delay = 0
    engine_queue_delay_microseconds: _Delay = 0
    engine_precision: EnginePrecision = "f32"
    tuned: TuningRecord | UnsetType = UNSET

    def __str__(self) -> str:
        threads = {0: "all cores", 1: "1 thread"}.get(self.engine_threads, f"{self.engine_threads} threads")
        text = f"preprocess {self.preprocess_instances}, engine {self.engine_instances} x {threads}"
        delays = self.preprocess_queue_delay_microseconds, self.engine_queue_delay_microseconds
        text += f", delays {delays[0]} and {delays[1]} us" if any(delays) else ""
        return text + (f", {self.engine_precision}" if self.engine_precision != "f32" else "")


DEFAULT_SETTINGS: Final[Mapping[Target, ServingSettings]] = {
    "embedded": ServingSettings(),
    "cpu": ServingSettings(),
    "int8": ServingSettings(),
    "gpu": ServingSettings(engine_queue_delay_microseconds=1000),
}


class QueueSettings(Document, frozen=True):
    """How many requests wait, and how long.

    Attributes:
        max_queue_size: Requests that may wait for one step; further ones are refused as UNAVAILABLE, which bounds the
            memory.
        timeout_microseconds: How long a request may wait for one step before it is refused; a request may ask for
            another timeout with Triton's parameter `timeout`.
    """

    max_queue_size: Annotated[int, Meta(ge=1, le=100_000)] = 128
    timeout_microseconds: Annotated[int, Meta(ge=1000, le=3_600_000_000)] = 30_000_000


class ModelSettings(VersionedDocument, frozen=True, kw_only=True):
    """The content of `serving.json`.

    Attributes:
        max_batch_size: Images in one request, and in one batch that Triton forms, at least as many as engines warm up
            with; part of the served contract, the same on all targets, and never changed by `mlcls tune`.
        queue: The queue of each step, on all targets; optional in the file.
        images: Which images are accepted and how they are read, on all targets; optional in the file.
        targets: The settings of the targets that are not served with the defaults.
    """

    max_batch_size: Annotated[int, Meta(ge=8, le=MAX_BATCH_SIZE)] = MAX_BATCH_SIZE
    queue: QueueSettings = QueueSettings()
    images: ImageSettings = DEFAULT_IMAGE_SETTINGS
    targets: dict[Target, ServingSettings] = {}  # noqa: RUF012 (msgspec copies it)

    def __post_init__(self) -> None:
        for field, default, allowed in (
            ("engine_threads", 0, THREADED_TARGETS),
            ("engine_precision", "f32", TARGETS[:1]),
        ):
            for target, settings in self.targets.items():
                value = getattr(settings, field)
                if value != default and target not in allowed:
                    text = f"targets.{target}.{field}: expected {default!r}, got {value!r}"
                    raise ValueError(f"{text}: it can be set for {' and '.join(allowed)} only")

    @property
    def tuned(self) -> dict[Target, TuningRecord]:
        """Where the settings were measured, for the targets for which they were."""
        return {target: settings.tuned for target, settings in self.targets.items() if settings.tuned}

    def of(self, target: Target) -> ServingSettings:
        """Return the settings of a target."""
        return msgspec.structs.replace(self.targets.get(target, DEFAULT_SETTINGS[target]), tuned=UNSET)

    def with_target(self, target: Target, settings: ServingSettings, tuned: TuningRecord | None) -> ModelSettings:
        """Return a copy with other settings for a target."""
        settings = msgspec.structs.replace(settings, tuned=tuned or UNSET)
        return msgspec.structs.replace(self, targets={**self.targets, target: settings})

    def without_target(self, target: Target) -> ModelSettings:
        """Return a copy with the defaults for a target."""
        others = {name: settings for name, settings in self.targets.items() if name != target}
        return msgspec.structs.replace(self, targets=others)

    def describe_mismatch(self, target: Target, cores: int) -> str | None:
        """Return a warning if a target's settings were measured with another number of cores, else None."""
        record = self.tuned.get(target)
        if record is None or record.cores == cores:
            return None
        return f"the settings of the target {target} were tuned for {record.cores} cores, there are {cores} here"

    def to_json(self) -> str:
        """Return the text of `serving.json`; `from_json` gives equal settings back."""
        document = msgspec.to_builtins(self) | {"images": self.images.changes()}
        if self.queue == QueueSettings():
            del document["queue"]
        if not document["images"]:
            del document["images"]
        return to_json(document)

    @classmethod
    def from_json(cls, text: str, origin: str = SETTINGS_FILE) -> ModelSettings:
        """Read the text of a `serving.json`, called `origin` in errors.

        Raises:
            ConfigError: The text is not JSON, has another schema version, or a key is unknown or wrong.
        """
        return decode(text, cls, ConfigError, origin, SETTINGS_REMEDY)


DEFAULT_MODEL_SETTINGS: Final = ModelSettings()


def settings_path(root: Path, name: str) -> Path:
    """Return the path of a model's settings file in a repository."""
    return root / name / SETTINGS_FILE
