"""The sections of PaddleX's configuration files of this module, with the names of their fields.

The fields are those of PaddleX's own files (`configs/modules/image_multilabel_classification`) and of its page "Common
model configuration file parameters". A field that PaddleX does not have has a default and says so.
"""

from __future__ import annotations

import dataclasses
from typing import Final

from mlcls.training.settings import TrainSettings

#: Formats that `CheckDataset.convert` reads.
SOURCE_TYPES: Final = ("COCO",)


@dataclasses.dataclass(frozen=True)
class GlobalSection:
    """What every mode reads.

    Attributes:
        model: One of the six models.
        mode: What is done; see `mlcls.paddlex_modes`.
        dataset_dir: Folder of the dataset.
        device: `cpu`, `gpu:0` or `gpu:0,1`.
        output: Folder that everything is written to.
    """

    model: str
    mode: str
    dataset_dir: str
    device: str
    output: str


@dataclasses.dataclass(frozen=True)
class ConvertSection:
    """Conversion of a dataset of another format.

    Attributes:
        enable: Whether to convert.
        src_dataset_type: Format of the dataset as it is, one of `SOURCE_TYPES`.
    """

    enable: bool
    src_dataset_type: str | None


@dataclasses.dataclass(frozen=True)
class SplitSection:
    """A new split into training and validation images.

    Attributes:
        enable: Whether to split.
        train_percent: Share of the training images.
        val_percent: Share of the validation images; both make 100.
        seed: Another seed gives another split of the same quality (not in PaddleX, whose split is another every time).
    """

    enable: bool
    train_percent: int | None
    val_percent: int | None
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class CheckDatasetSection:
    """Mode `check_dataset`."""

    convert: ConvertSection
    split: SplitSection


@dataclasses.dataclass(frozen=True)
class TrainSection:
    """Mode `train`.

    Attributes:
        num_classes: Labels of the dataset; null takes those of `label.txt`.
        epochs_iters: Passes over the training images.
        batch_size: Images in a step of one device.
        learning_rate: Highest learning rate.
        pretrain_weight_path: Weights to start from, a path or a URL; null starts with fresh ones.
        warmup_steps: Epochs in which the learning rate rises.
        resume_path: Checkpoint to go on from.
        log_interval: Steps between two lines of the log.
        eval_interval: Epochs between two evaluations.
        save_interval: Epochs between two checkpoints.
        seed: Of everything random. This field and the following are not in PaddleX; see
            `mlcls.training.settings.TrainSettings`.
        amp: Whether to compute in mixed precision.
        image_size: Height and width of the network's input.
        threshold: Of every label of the exported model.
        weight_decay: Of the parameters that are not one-dimensional.
        ema_decay: Of the moving average of the weights.
        cutout: Whether a rectangle is cut out of each training image.
        rand_augment: Whether training images are changed by RandAugment.
        num_workers: Threads that read images, for each process.
        backbone_scale: Width of a PP-LCNet.
        decoder_width: Width of the head.
        gradient_clip: Highest norm of the gradients; 0 leaves them.
    """

    num_classes: int | None
    epochs_iters: int
    batch_size: int
    learning_rate: float
    pretrain_weight_path: str | None
    warmup_steps: int
    resume_path: str | None
    log_interval: int
    eval_interval: int
    save_interval: int
    seed: int = TrainSettings.seed
    amp: bool = TrainSettings.amp
    image_size: int = TrainSettings.image_size[0]
    threshold: float = TrainSettings.threshold
    weight_decay: float = TrainSettings.weight_decay
    ema_decay: float = TrainSettings.ema_decay
    cutout: bool = TrainSettings.cutout
    rand_augment: bool = TrainSettings.rand_augment
    num_workers: int = TrainSettings.num_workers
    backbone_scale: float = TrainSettings.backbone_scale
    decoder_width: int = TrainSettings.decoder_width
    gradient_clip: float = TrainSettings.gradient_clip


@dataclasses.dataclass(frozen=True)
class EvaluateSection:
    """Mode `evaluate`: the weights, and batches between two lines of the log."""

    weight_path: str | None
    log_interval: int


@dataclasses.dataclass(frozen=True)
class ExportSection:
    """Mode `export`: the weights, a path or a URL."""

    weight_path: str | None


@dataclasses.dataclass(frozen=True)
class KernelOptionSection:
    """How the model is run; `paddle` is Paddle's own engine."""

    run_mode: str = "paddle"


@dataclasses.dataclass(frozen=True)
class PredictSection:
    """Mode `predict`: images in a batch, folder of the inference model, and an image, a folder or a URL."""

    batch_size: int
    model_dir: str | None
    input: str
    kernel_option: KernelOptionSection = KernelOptionSection()


@dataclasses.dataclass(frozen=True)
class PaddleXConfig:
    """A whole configuration file."""

    Global: GlobalSection
    CheckDataset: CheckDatasetSection
    Train: TrainSection
    Evaluate: EvaluateSection
    Export: ExportSection
    Predict: PredictSection
