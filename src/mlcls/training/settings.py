"""Settings of a training: PaddleX's `Global` and `Train` fields, and a few that PaddleX does not have."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from mlcls.base.documents import Document, change, convert
from mlcls.errors import SpecError, TrainingError
from mlcls.model.catalog import DEFAULT_SIZE, DEFAULT_THRESHOLD, DEFAULT_TRANSFORM
from mlcls.model.spec import ImageTransform
from mlcls.training.architectures import DECODER_WIDTH, check_scale

# PaddleClas's recipes.
_LEARNING_RATE: Final = 1e-4
_LEARNING_RATES: Final[Mapping[str, float]] = {"CLIP_vit_base_patch16_448_ML": 5e-5}

_MIN_SIDE: Final = 32

Count = Annotated[int, Meta(ge=1)]
Natural = Annotated[int, Meta(ge=0)]
Decay = Annotated[float, Meta(ge=0, lt=1)]


@dataclasses.dataclass(frozen=True)
class Device:
    """Where a training runs.

    Attributes:
        kind: `cpu` or `gpu`.
        ids: One for each process, the number of a GPU; empty for one process on the first GPU, or on the CPU.
    """

    kind: str
    ids: tuple[int, ...]

    def __str__(self) -> str:
        """Return the text that `parse` reads."""
        return f"{self.kind}:{','.join(map(str, self.ids))}".removesuffix(":")

    @property
    def process_count(self) -> int:
        """Number of processes."""
        return max(1, len(self.ids))

    @classmethod
    def parse(cls, text: str) -> Device:
        """Read `cpu`, `gpu`, `gpu:0` or `gpu:0,1`; `cpu:0,1` means two processes on the CPU.

        Raises:
            TrainingError: The text has none of these forms, or names a device twice.
        """
        match = re.fullmatch(r"(cpu|gpu)(?::(\d+(?:,\d+)*))?", text)
        ids = [int(number) for number in match[2].split(",")] if match and match[2] else []
        if not match or len(set(ids)) != len(ids):
            raise TrainingError(f"Global.device: expected cpu, gpu:0 or gpu:0,1 with each number once, got {text!r}.")
        return cls(match[1], tuple(ids))


class TrainSection(Document, frozen=True, kw_only=True):
    """PaddleX's section `Train`. The second group of fields is this trainer's own.

    Attributes:
        num_classes: Number of labels, checked against `label.txt`; None accepts any number.
        epochs_iters: Number of epochs.
        batch_size: Images per step and process.
        learning_rate: Highest learning rate, reached at the end of the warm-up; by default PaddleClas's for the model.
        pretrain_weight_path: `.pdparams` to start from, a path or a URL; None or true for PaddleClas's backbone,
            pretrained on ImageNet, false for random weights.
        resume_path: Checkpoint to resume from: a folder like `output/latest`, or a file in it; without one, a new run.
        warmup_steps: Epochs of warm-up; PaddleX's name for PaddleClas's `warmup_epoch`.
        log_interval: Steps between two lines of the log and two points of the curves.
        eval_interval: Epochs between two evaluations on the validation images; the last epoch is always evaluated.
        save_interval: Epochs between two checkpoints; the last epoch is always saved.
        seed: Seed of initial weights, order of the images, augmentation and dropout.
        amp: Mixed precision on a GPU, float16 with loss scaling where an operation gains from it: `OFF` or false, `O1`
            or true. PaddleX's `O2` trains as O1.
        dy2st: PaddleX's compilation of the network while it trains; only false.
        image_size: Height and width of the network's input; one number for a square.
        threshold: Threshold of every label in the exported model.
        weight_decay: Decoupled weight decay of all parameters that are not one-dimensional.
        ema_decay: Decay of the averaged weights in a long run; see `mlcls.training.optimization`.
        cutout: Whether a rectangle is cut out of each training image.
        rand_augment: Whether RandAugment is applied to training images.
        num_workers: Threads per process that read and augment images; 0 reads them between the steps, None takes the
            process's share of the processor's cores.
        backbone_scale: Width of a PP-LCNet; see `mlcls.training.architectures.build_network`.
        decoder_width: Width of the head; see there.
        gradient_clip: Largest norm of all gradients together, to which they are scaled down; 0 for no limit.
    """

    num_classes: Count | None = None
    epochs_iters: Count = 20
    batch_size: Count = 32
    learning_rate: Annotated[float, Meta(gt=0, lt=10)] | None = None
    pretrain_weight_path: str | bool | None = None
    resume_path: str | None = None
    warmup_steps: Natural = 5
    log_interval: Count = 20
    eval_interval: Count = 1
    save_interval: Count = 1

    seed: Natural = 0
    amp: bool | Literal["O1", "O2", "OFF"] = "OFF"
    dy2st: bool = False
    # without limits in the type, which make msgspec 0.23 read such a union wrongly
    image_size: int | tuple[int, int] = DEFAULT_SIZE[0]
    threshold: Annotated[float, Meta(gt=0, lt=1)] = DEFAULT_THRESHOLD
    weight_decay: Decay = 1e-4
    ema_decay: Decay = 0.9997
    cutout: bool = True
    rand_augment: bool = True
    num_workers: Natural | None = None
    backbone_scale: float = 1.0
    decoder_width: Annotated[int, Meta(ge=24, multiple_of=24)] = DECODER_WIDTH
    gradient_clip: Annotated[float, Meta(ge=0)] = 0.0

    def __post_init__(self) -> None:
        """Check the image size, and keep one of several spellings: a square as one number, mixed precision as text."""
        height, width = self.size
        if min(height, width) < _MIN_SIDE:
            raise ValueError(f"image_size: expected height and width of at least {_MIN_SIDE}, got {height}, {width}")
        if height == width:
            msgspec.structs.force_setattr(self, "image_size", height)
        if isinstance(self.amp, bool):
            msgspec.structs.force_setattr(self, "amp", "O1" if self.amp else "OFF")
        if self.dy2st:
            raise ValueError("dy2st: expected false, got true; mlcls does not compile a network that it trains")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the network's input."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size

    def reader_count(self, processes: int = 1) -> int:
        """Return `num_workers`, or the share of the cores of one of several processes on this machine."""
        if self.num_workers is not None:
            return self.num_workers
        return max(1, len(os.sched_getaffinity(0)) // processes)


class _SharedSection(Document, frozen=True, kw_only=True):
    """What a training takes from PaddleX's section `Global`."""

    model: str
    dataset_dir: Path
    output: Path = Path("output")
    device: str = "cpu"


class _Sections(Document, frozen=True):
    """The two sections of a configuration, whose names errors have."""

    Global: _SharedSection
    Train: TrainSection


class TrainSettings(TrainSection, frozen=True):
    """One training: PaddleX's section `Train`, and of `Global` what a training needs.

    `from_config` checks types and limits, the constructor does not; `train_model` checks what it gets.

    Attributes:
        model: Architecture, the name of one of the six models.
        dataset_dir: Folder with `label.txt`, `train.txt`, `val.txt` and the images.
        output: Folder that everything is written to.
        device: See `Device.parse`; several numbers start as many processes.
    """

    model: str
    dataset_dir: Path
    output: Path = Path("output")
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Check what depends on several fields.

        Raises:
            TrainingError: There is no such device.
            ModelFormatError: The architecture is not one of the six, or does not come in this size.
        """
        super().__post_init__()
        check_scale(self.model, self.backbone_scale)
        Device.parse(self.device)

    @property
    def transform(self) -> ImageTransform:
        """The transform from a decoded image to the network's input."""
        return change(DEFAULT_TRANSFORM, SpecError, height=self.size[0], width=self.size[1])

    @property
    def peak_learning_rate(self) -> float:
        """`learning_rate`, or that of PaddleClas's recipe for this model."""
        return self.learning_rate or _LEARNING_RATES.get(self.model, _LEARNING_RATE)

    @property
    def warmup_epochs(self) -> int:
        """Actual epochs of warm-up: at most half of all, so that some are left for the decay."""
        return min(self.warmup_steps, self.epochs_iters // 2)

    def to_config(self) -> dict[str, dict[str, Any]]:
        """Return the sections `Global` and `Train` of a PaddleX configuration that repeats this training."""
        values = msgspec.to_builtins(self, enc_hook=str)
        return {
            "Global": {"mode": "train", **{name: values.pop(name) for name in _SharedSection.__struct_fields__}},
            "Train": values,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Mapping[str, Any]]) -> TrainSettings:
        """Return the settings in the sections `Global` and `Train`; other sections are ignored.

        Raises:
            TrainingError: A key is unknown or a value is wrong.
        """
        shared = {name: value for name, value in config["Global"].items() if name != "mode"}
        values = msgspec.to_builtins({"Global": shared, "Train": config["Train"]}, enc_hook=str)
        sections = convert(values, _Sections, TrainingError)
        return cls(**msgspec.structs.asdict(sections.Global), **msgspec.structs.asdict(sections.Train))
