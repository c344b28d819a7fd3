"""Settings of a training: PaddleX's `Global` and `Train` fields, and a few that PaddleX does not have."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from mlcls.base.checks import finite_float
from mlcls.base.documents import change
from mlcls.errors import SpecError, TrainingError
from mlcls.model.catalog import DEFAULT_SIZE, DEFAULT_THRESHOLD, DEFAULT_TRANSFORM
from mlcls.model.spec import ImageTransform
from mlcls.training.architectures import DECODER_WIDTH, NetworkSize

# AdamW can diverge well below this. PaddleX's own files have up to 0.1, PaddleClas's recipes do not.
HIGH_LEARNING_RATE: Final = 0.01

_MIN_SIDE: Final = 32


@dataclasses.dataclass(frozen=True)
class Device:
    """Where a training runs.

    Attributes:
        kind: `cpu` or `gpu`.
        ids: One for each process; the number of a GPU.
    """

    kind: str
    ids: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> Device:
        """Read `cpu`, `gpu`, `gpu:0` or `gpu:0,1`; `cpu:0,1` means two processes on the CPU.

        Raises:
            TrainingError: The text has none of these forms, or names a device twice.
        """
        match = re.fullmatch(r"(cpu|gpu)(?::(\d+(?:,\d+)*))?", text)
        ids = [int(number) for number in (match[2] or "0").split(",")] if match else []
        if not match or len(set(ids)) != len(ids):
            raise TrainingError(f"device: expected cpu, gpu:0 or gpu:0,1 with each number once, got {text!r}.")
        return cls(match[1], tuple(ids))


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """One training. The first group has PaddleX's names and meanings, the second is this trainer's own.

    Attributes:
        model: Architecture, the name of one of the six models.
        dataset_dir: Folder with `label.txt`, `train.txt`, `val.txt` and the images.
        output: Folder that everything is written to.
        device: See `Device.parse`; several numbers start as many processes.
        num_classes: Number of labels, checked against `label.txt`; None accepts any number.
        epochs_iters: Number of epochs.
        batch_size: Images per step and process.
        learning_rate: Highest learning rate, reached at the end of the warm-up.
        pretrain_weight_path: `.pdparams` to start from, a path or a URL; None starts with fresh weights.
        resume_path: Checkpoint to resume from: a folder like `output/latest`, or a file in it; None starts a new run.
        warmup_steps: Epochs of warm-up; PaddleX's name for PaddleClas's `warmup_epoch`.
        log_interval: Steps between two lines of the log and two points of the curves.
        eval_interval: Epochs between two evaluations on the validation images; the last epoch is always evaluated.
        save_interval: Epochs between two checkpoints; the last epoch is always saved.
        seed: Seed of initial weights, order of the images, augmentation and dropout.
        amp: Whether to use mixed precision, O1: float16 with loss scaling on a GPU, bfloat16 on a CPU.
        image_size: Height and width of the network's input; one number makes a square.
        threshold: Threshold of every label in the exported model.
        weight_decay: Decoupled weight decay of all parameters that are not one-dimensional.
        ema_decay: Decay of the averaged weights in a long run; see `mlcls.training.optimization`.
        cutout: Whether a rectangle is cut out of each training image.
        rand_augment: Whether RandAugment is applied to training images.
        num_workers: Threads per process that read and augment images; 0 reads them between the steps.
        backbone_scale: Width of a PP-LCNet; see `mlcls.training.architectures.NetworkSize`.
        decoder_width: Width of the head; see there.
        gradient_clip: Largest norm of all gradients together, to which they are scaled down; 0 for no limit.
    """

    model: str
    dataset_dir: Path
    output: Path = Path("output")
    device: str = "cpu"
    num_classes: int | None = None
    epochs_iters: int = 20
    batch_size: int = 32
    learning_rate: float = 1e-4
    pretrain_weight_path: str | None = None
    resume_path: str | None = None
    warmup_steps: int = 5
    log_interval: int = 20
    eval_interval: int = 1
    save_interval: int = 1

    seed: int = 0
    amp: bool = False
    image_size: tuple[int, int] = DEFAULT_SIZE
    threshold: float = DEFAULT_THRESHOLD
    weight_decay: float = 1e-4
    ema_decay: float = 0.9997
    cutout: bool = True
    rand_augment: bool = True
    num_workers: int = 4
    backbone_scale: float = 1.0
    decoder_width: int = DECODER_WIDTH
    gradient_clip: float = 0.0

    def __post_init__(self) -> None:
        """Check every value and bring paths and sizes into one form.

        Raises:
            TrainingError: A value is out of its range; the text names it.
            ModelFormatError: The architecture is not one of the six, or does not come in this size.
        """
        self.network_size.check(self.model)
        Device.parse(self.device)
        for name in ("dataset_dir", "output"):
            object.__setattr__(self, name, Path(getattr(self, name)))
        for name, least in _LEAST_INTEGERS.items():
            value = getattr(self, name)
            if value is None and name == "num_classes":
                continue
            if type(value) is not int or value < least:
                raise TrainingError(f"{name}: expected an integer of at least {least}, got {value!r}.")
        for name, (low, high) in _OPEN_RANGES.items():
            number = finite_float(getattr(self, name))
            if number is None or not low < number < high:
                raise TrainingError(f"{name}: expected a number between {low} and {high}, got {getattr(self, name)!r}.")
        for name in ("weight_decay", "ema_decay"):
            number = finite_float(getattr(self, name))
            if number is None or not 0 <= number < 1:
                raise TrainingError(f"{name}: expected a number from 0 to below 1, got {getattr(self, name)!r}.")
        clip = finite_float(self.gradient_clip)
        if clip is None or clip < 0:
            raise TrainingError(f"gradient_clip: expected a number of at least 0, got {self.gradient_clip!r}.")
        for name in ("amp", "cutout", "rand_augment"):
            if type(getattr(self, name)) is not bool:
                raise TrainingError(f"{name}: expected true or false, got {getattr(self, name)!r}.")
        size: object = self.image_size
        sides = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
        if len(sides) != 2 or any(type(side) is not int or side < _MIN_SIDE for side in sides):
            raise TrainingError(f"image_size: expected height and width of at least {_MIN_SIDE}, got {sides!r}.")
        object.__setattr__(self, "image_size", sides)
        for name in ("pretrain_weight_path", "resume_path"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, (str, Path)):
                raise TrainingError(f"{name}: expected a path or null, got {value!r}.")
            object.__setattr__(self, name, str(value) if value else None)  # an empty string is PaddleX's other null

    @property
    def transform(self) -> ImageTransform:
        """The transform from a decoded image to the network's input."""
        return change(DEFAULT_TRANSFORM, SpecError, height=self.image_size[0], width=self.image_size[1])

    @property
    def network_size(self) -> NetworkSize:
        """Size of the network."""
        return NetworkSize(self.backbone_scale, self.decoder_width)

    @property
    def warmup_epochs(self) -> int:
        """Actual epochs of warm-up: at most half of all, so that some are left for the decay."""
        return min(self.warmup_steps, self.epochs_iters // 2)

    def to_config(self) -> dict[str, dict[str, Any]]:
        """Return the sections `Global` and `Train` of a PaddleX configuration that repeats this training."""
        values = dataclasses.asdict(self)
        values |= {"dataset_dir": str(self.dataset_dir), "output": str(self.output)}
        height, width = self.image_size
        values["image_size"] = height if height == width else [height, width]
        shared = ("model", "dataset_dir", "device", "output")
        return {
            "Global": {"mode": "train", **{name: values[name] for name in shared}},
            "Train": {name: value for name, value in values.items() if name not in shared},
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Mapping[str, Any]]) -> TrainSettings:
        """Return the settings in the sections `Global` and `Train`; other sections are ignored.

        Raises:
            TrainingError: A key is unknown or a value is wrong.
        """
        values = {**config["Global"], **config["Train"]}
        values.pop("mode", None)
        unknown = sorted(set(values) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise TrainingError(f"unknown setting {unknown[0]!r}.")
        return cls(**values)


_LEAST_INTEGERS: Final = {
    "num_classes": 1,
    "epochs_iters": 1,
    "batch_size": 1,
    "warmup_steps": 0,
    "log_interval": 1,
    "eval_interval": 1,
    "save_interval": 1,
    "seed": 0,
    "num_workers": 0,
}
_OPEN_RANGES: Final = {"learning_rate": (0.0, 10.0), "threshold": (0.0, 1.0)}
