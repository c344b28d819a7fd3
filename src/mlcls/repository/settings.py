"""`serving.json`: what may differ from machine to machine in how a model is served; the configurations follow from it.

It lies in the ensemble's folder and belongs to the model, not to one version of it: a version that is published later
is served with the same settings. A target that it does not name is served with the defaults, as is a model without the
file. `mlcls tune` writes it; it may be written by hand, and `mlcls repository` then writes the configurations anew.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from mlcls.errors import ConfigError
from mlcls.images.settings import DEFAULT_IMAGE_SETTINGS, ImageSettings

Target = Literal["embedded", "cpu", "int8", "gpu"]
TARGETS: Final[tuple[Target, ...]] = ("embedded", "cpu", "int8", "gpu")


SCHEMA_VERSION: Final = 1
FILE_NAME: Final = "serving.json"

# Images in one request, and in one batch that Triton forms; the gate and the TensorRT plans go no further.
MAX_BATCH_SIZE: Final = 32

# The engines warm up at batches of this size.
SMALLEST_MAX_BATCH_SIZE: Final = 8

# In what the target `embedded` computes; see `ServingSettings.engine_precision`.
ENGINE_PRECISIONS: Final = ("f32", "bf16")

# Targets whose engine is OpenVINO in this project's own backend; the others take no number of threads from Triton.
THREADED_TARGETS: Final[tuple[Target, ...]] = ("embedded", "int8")

MOST_INSTANCES: Final = 256
MOST_THREADS: Final = 1024
LONGEST_QUEUE_DELAY_MICROSECONDS: Final = 10_000


def _check_range(field: str, value: object, least: int, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ConfigError(f"{field}: expected a whole number from {least} to {most}, got {value!r}.")


@dataclasses.dataclass(frozen=True)
class ServingSettings:
    """How a model is served on one target.

    Attributes:
        preprocess_instances: Processes that decode; each uses one core.
        engine_instances: Engines that compute at the same time, each with weights of its own in memory.
        engine_threads: Threads of one engine on the targets `embedded` and `int8`; 0 takes all cores.
        preprocess_queue_delay_microseconds: How long a request waits for others before it is decoded.
        engine_queue_delay_microseconds: How long the batcher waits for a batch to fill. On a CPU it does not by
            default: a batch is no faster there than its images one by one.
        engine_precision: `f32`, or `bf16` on the target `embedded`, which is faster on processors with units for
            it, refused by all others, and gives other scores than PaddleX.
    """

    preprocess_instances: int = 2
    engine_instances: int = 1
    engine_threads: int = 0
    preprocess_queue_delay_microseconds: int = 0
    engine_queue_delay_microseconds: int = 0
    engine_precision: str = "f32"

    def __post_init__(self) -> None:
        _check_range("preprocess_instances", self.preprocess_instances, 1, MOST_INSTANCES)
        _check_range("engine_instances", self.engine_instances, 1, MOST_INSTANCES)
        _check_range("engine_threads", self.engine_threads, 0, MOST_THREADS)
        for step in ("preprocess", "engine"):
            field = f"{step}_queue_delay_microseconds"
            _check_range(field, getattr(self, field), 0, LONGEST_QUEUE_DELAY_MICROSECONDS)
        if self.engine_precision not in ENGINE_PRECISIONS:
            raise ConfigError(
                f"engine_precision: expected one of {', '.join(ENGINE_PRECISIONS)}, got {self.engine_precision!r}."
            )

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


@dataclasses.dataclass(frozen=True)
class TuningRecord:
    """Where a target's settings were measured.

    Attributes:
        cores: Processor cores that the server could use.
        date: When, in ISO 8601, UTC.
        report: File with the evidence, beside `serving.json`.
    """

    cores: int
    date: str
    report: str

    def __post_init__(self) -> None:
        _check_range("cores", self.cores, 1, 1 << 20)
        for field in ("date", "report"):
            value = getattr(self, field)
            if not isinstance(value, str) or not value:
                raise ConfigError(f"{field}: expected a text, got {value!r}.")


@dataclasses.dataclass(frozen=True)
class QueueSettings:
    """How many requests wait, and how long.

    Attributes:
        max_queue_size: Requests that wait for one step; the next one is refused as UNAVAILABLE, and the memory stays
            bounded.
        timeout_microseconds: How long a request may wait for one step before it is refused; a request may ask for less
            or more with Triton's own parameter `timeout`.
    """

    max_queue_size: int = 128
    timeout_microseconds: int = 30_000_000

    def __post_init__(self) -> None:
        _check_range("queue.max_queue_size", self.max_queue_size, 1, 100_000)
        _check_range("queue.timeout_microseconds", self.timeout_microseconds, 1000, 3_600_000_000)


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """The content of `serving.json`.

    Attributes:
        max_batch_size: Images in one request, and in one batch that Triton forms; part of the served contract, the same
            on all targets, and never changed by `mlcls tune`.
        targets: The settings of targets that are not served with the defaults.
        tuned: Of the targets whose settings were measured: where.
        queue: Before each step, on all targets; may be left out of the file.
        images: What images are accepted and how they are read, on all targets; may be left out of the file.
    """

    max_batch_size: int = MAX_BATCH_SIZE
    targets: Mapping[Target, ServingSettings] = dataclasses.field(default_factory=dict)
    tuned: Mapping[Target, TuningRecord] = dataclasses.field(default_factory=dict)
    queue: QueueSettings = QueueSettings()
    images: ImageSettings = DEFAULT_IMAGE_SETTINGS

    def __post_init__(self) -> None:
        _check_range("max_batch_size", self.max_batch_size, SMALLEST_MAX_BATCH_SIZE, MAX_BATCH_SIZE)
        for target, settings in self.targets.items():
            if settings.engine_threads and target not in THREADED_TARGETS:
                raise ConfigError(
                    f"{target}.engine_threads: expected 0, got {settings.engine_threads}: only the engines of "
                    f"{' and '.join(THREADED_TARGETS)} take a number of threads."
                )
            if settings.engine_precision != "f32" and target != "embedded":
                raise ConfigError(
                    f"{target}.engine_precision: expected 'f32', got {settings.engine_precision!r}: only the target "
                    f"embedded takes another."
                )

    def of(self, target: Target) -> ServingSettings:
        """Return the settings of a target."""
        return self.targets.get(target, DEFAULT_SETTINGS[target])

    def with_target(self, target: Target, settings: ServingSettings, tuned: TuningRecord | None) -> ModelSettings:
        """Return these, with other settings of a target."""
        records = {name: record for name, record in self.tuned.items() if name != target}
        if tuned is not None:
            records[target] = tuned
        return dataclasses.replace(self, targets={**self.targets, target: settings}, tuned=records)

    def without_target(self, target: Target) -> ModelSettings:
        """Return these, with the defaults of a target."""
        return dataclasses.replace(
            self,
            targets={name: settings for name, settings in self.targets.items() if name != target},
            tuned={name: record for name, record in self.tuned.items() if name != target},
        )

    def describe_mismatch(self, target: Target, cores: int) -> str | None:
        """Return a warning if a target's settings were measured with another number of cores; None if they fit."""
        record = self.tuned.get(target)
        if record is None or record.cores == cores:
            return None
        return f"the settings of the target {target} were tuned for {record.cores} cores, there are {cores} here"

    def to_json(self) -> str:
        """Return the text of `serving.json`; `from_json` gives equal settings back."""
        targets = {}
        for target in TARGETS:
            if target in self.targets:
                targets[target] = dataclasses.asdict(self.targets[target])
                if target in self.tuned:
                    targets[target]["tuned"] = dataclasses.asdict(self.tuned[target])
        document: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "max_batch_size": self.max_batch_size}
        if self.queue != QueueSettings():
            document["queue"] = dataclasses.asdict(self.queue)
        if self.images != DEFAULT_IMAGE_SETTINGS:
            document["images"] = self.images.changes()
        document["targets"] = targets
        return json.dumps(document, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, origin: str = FILE_NAME) -> ModelSettings:
        """Read the text of a `serving.json`.

        Args:
            text: The JSON document.
            origin: What to call it in errors, usually its path.

        Raises:
            ConfigError: The text is no JSON, of another schema version, or a key is unknown, missing or wrong.
        """
        try:
            return _parse(json.loads(text))
        except (ValueError, RecursionError) as error:  # ValueError: no JSON, or a number of too many digits
            raise ConfigError(f"{origin}: expected a JSON document, got text that is none ({error}).") from None
        except ConfigError as error:
            raise ConfigError(f"{origin}: {error} Mend it, or go back to the defaults: mlcls tune --reset.") from None


DEFAULT_MODEL_SETTINGS: Final = ModelSettings()


def settings_path(root: Path, name: str) -> Path:
    """Return the file of a model's settings in a repository."""
    return root / name / FILE_NAME


def read_settings(root: Path, name: str) -> ModelSettings:
    """Return the settings of a model; the defaults where it has no file of them.

    Raises:
        ConfigError: The file cannot be read, or is wrong.
    """
    path = settings_path(root, name)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return DEFAULT_MODEL_SETTINGS
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: expected the settings of a model, got a file that cannot be read: {error}"
        ) from None
    return ModelSettings.from_json(text, str(path))


def _parse(document: Any) -> ModelSettings:
    _check_keys("", document, {"schema_version", "max_batch_size", "targets"}, optional={"queue", "images"})
    if document["schema_version"] != SCHEMA_VERSION or isinstance(document["schema_version"], bool):
        raise ConfigError(f"schema_version: expected {SCHEMA_VERSION}, got {document['schema_version']!r}.")
    _check_keys("targets.", document["targets"], set(), optional=set(TARGETS))
    targets: dict[Target, ServingSettings] = {}
    tuned: dict[Target, TuningRecord] = {}
    for target in TARGETS:
        if target not in document["targets"]:
            continue
        values = document["targets"][target]
        prefix = f"targets.{target}."
        _check_keys(prefix, values, _names(ServingSettings) - _NEWER_NAMES, optional={"tuned", *_NEWER_NAMES})
        try:
            if "tuned" in values:
                _check_keys("tuned.", values["tuned"], _names(TuningRecord))
                tuned[target] = TuningRecord(**values["tuned"])
            targets[target] = ServingSettings(**{key: value for key, value in values.items() if key != "tuned"})
        except ConfigError as error:
            raise ConfigError(f"{prefix}{error}") from None
    queue = document.get("queue", {})
    _check_keys("queue.", queue, set(), optional=_names(QueueSettings))
    images = ImageSettings.from_document(document.get("images", {}), "images: ")
    return ModelSettings(document["max_batch_size"], targets, tuned, QueueSettings(**queue), images)


# Settings that files of earlier versions do not have.
_NEWER_NAMES: Final = frozenset({"engine_precision"})


def _names(cls: type[Any]) -> set[str]:
    return {field.name for field in dataclasses.fields(cls)}


def _check_keys(prefix: str, values: Any, required: set[str], optional: set[str] | None = None) -> None:
    if not isinstance(values, dict):
        raise ConfigError(f"{prefix.rstrip('.') or 'the document'}: expected an object, got {values!r}.")
    known = required | (optional or set())
    unknown = sorted(set(values) - known)
    if unknown:
        raise ConfigError(f"unknown key {prefix}{unknown[0]}; expected only {', '.join(sorted(known))}.")
    missing = sorted(required - set(values))
    if missing:
        raise ConfigError(f"{prefix}{missing[0]} is missing.")
