"""Run a whole training, from a dataset's folder to a PaddleX inference model."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mlcls.dataset.check import examine_dataset
from mlcls.errors import DatasetError, DownloadError, TrainingError
from mlcls.paddle.runtime import import_paddle
from mlcls.training.architectures import backbone_url, build_network, find_weights, load_pretrained
from mlcls.training.checkpoint import Checkpoint, read_checkpoint
from mlcls.training.data import TrainingData
from mlcls.training.export import export_model
from mlcls.training.processes import ProcessGroup, StopRequest, require_devices, set_device, train_in_processes
from mlcls.training.run_folder import RunFolder, TrainReport
from mlcls.training.settings import Device, TrainSettings
from mlcls.training.trainer import Trainer

if TYPE_CHECKING:
    import paddle

# AdamW can diverge well below this. PaddleX's own files have up to 0.1, PaddleClas's recipes do not.
_HIGH_LEARNING_RATE: Final = 0.01
# Settings that a resumed training must have in common with its checkpoint, or its position would mean nothing.
_MUST_AGREE: Final = ("model", "backbone_scale", "decoder_width", "image_size", "batch_size", "seed")
# Settings that it may change; its weights then differ from those of an uninterrupted run.
_MAY_CHANGE: Final = (
    "epochs_iters",
    "peak_learning_rate",
    "warmup_steps",
    "weight_decay",
    "ema_decay",
    "amp",
    "cutout",
    "rand_augment",
    "gradient_clip",
)


def train_model(settings: TrainSettings) -> TrainReport:
    """Train a model, evaluate it on the way, and export the best weights.

    Several devices take one process each, started by `paddle.distributed.launch`. SIGINT and SIGTERM stop the training
    after the step in progress, with a checkpoint in `output/latest`.

    Raises:
        DatasetError: The dataset is wrong, or an image cannot be used; what is only a defect is printed.
        DownloadError: The weights to start from cannot be downloaded.
        TrainingError: A setting is wrong, weights, checkpoint or device do not allow it, or the training diverged.
        TrainingInterruptedError: A signal stopped the training.
        MissingExtraError: The extra `train` is not installed.
    """
    settings = TrainSettings.from_config(settings.to_config())  # checks values that a program gave
    device = Device.parse(settings.device)
    # what is wrong is told now, not after hours or by each process
    TrainingData.read(settings.dataset_dir, settings.num_classes)
    require_devices(device)
    if not settings.resume_path:
        _find_first_weights(settings)
        _report_problems(settings.dataset_dir)
    if device.process_count == 1:
        train_in_process(settings, ProcessGroup())
    else:
        train_in_processes(settings, device)
    return RunFolder(settings).report()


def train_in_process(settings: TrainSettings, group: ProcessGroup) -> None:
    """Do this process's part of a training; see `train_model`."""
    data = TrainingData.read(settings.dataset_dir, settings.num_classes)
    paddle = import_paddle("train")
    checkpoint = read_checkpoint(Path(settings.resume_path)) if settings.resume_path else None
    notes = _compare(settings, data, group, checkpoint) if checkpoint else _remarks(settings)
    if group.size == 1:
        set_device(Device.parse(settings.device))
    folder = RunFolder(settings)
    with warnings.catch_warnings(), paddle.utils.unique_name.guard(), StopRequest() as stop:
        warnings.simplefilter("ignore")  # paddle warns for each batch norm that it tracks statistics
        # the guard: parameter names, by which the optimizer's state is saved, start as for the first model
        network = build_network(
            settings.model,
            len(data.labels),
            backbone_scale=settings.backbone_scale,
            decoder_width=settings.decoder_width,
            seed=settings.seed,
        )
        lines = [_headline(settings, data, network, group), *notes]
        if not checkpoint:
            source = _first_weights(settings)
            no_weights = ["No pretrained weights: training from scratch."]
            lines += load_pretrained(network, source) if source else no_weights
        trainer = Trainer(settings, data, network, folder, stop, group)
        if checkpoint:
            trainer.restore(checkpoint)
            lines.append(f"Resumed after {trainer.steps_done} steps from {settings.resume_path}.")
        if group.is_first:
            folder.begin(resumed=checkpoint is not None)
            for line in lines:
                folder.log(line)
            folder.write_progress(trainer.progress)  # fails now, not hours later, if a package is missing
        trainer.run()
        if not group.is_first:
            return
        export_model(
            settings.model,
            folder.inference,
            labels=data.labels,
            size=settings.size,
            threshold=settings.threshold,
            weights=folder.weights,
        )
        folder.write_progress(trainer.progress, done=True)
        metrics = trainer.progress.metrics
        folder.log(
            f"Done: mAP {metrics['MultiLabelMAP']:.4f} after epoch {metrics['best_epoch']}; "
            f"{folder.inference} is ready for `mlcls import`."
        )


def _first_weights(settings: TrainSettings) -> str | None:
    """Return the path or URL of the weights to start from; None for random ones."""
    source = settings.pretrain_weight_path
    if isinstance(source, str):
        return source
    return None if source is False else backbone_url(settings.model, settings.backbone_scale)


def _find_first_weights(settings: TrainSettings) -> None:
    """Make sure that the weights to start from are on this machine.

    Raises:
        TrainingError: There is no such file.
        DownloadError: They cannot be downloaded.
    """
    source = _first_weights(settings)
    try:
        if source is not None:
            find_weights(source)
    except DownloadError as error:
        if isinstance(settings.pretrain_weight_path, str):
            raise
        raise DownloadError(f"{error} To train from random weights, set Train.pretrain_weight_path=False.") from error


def _report_problems(dataset: Path) -> None:
    """Print what mode `check_dataset` finds in a dataset.

    Raises:
        DatasetError: There are errors; the details have them.
    """
    log = examine_dataset(dataset)
    log.print(where_all="the result file of mode check_dataset")
    if log.errors:
        raise DatasetError(
            f"{dataset}: expected a dataset without errors, got {len(log.errors)}, the first: {log.errors[0]}.",
            {"problems": [problem.to_dict() for problem in log.errors + log.warnings]},
        )


def _headline(settings: TrainSettings, data: TrainingData, network: paddle.nn.Layer, group: ProcessGroup) -> str:
    weights = sum(parameter.size for parameter in network.parameters()) / 1e6
    height, width = settings.size
    processes = f", {group.size} processes" if group.size > 1 else ""
    return (
        f"{settings.model} ({weights:.1f} million weights) at {height}x{width} on {settings.device}{processes}: "
        f"{len(data.train)} images to train on, {len(data.val)} to evaluate on, {len(data.labels)} labels"
    )


def _remarks(settings: TrainSettings) -> list[str]:
    remarks = []
    if settings.warmup_epochs < settings.warmup_steps:
        remarks.append(
            f"Note: Train.warmup_steps {settings.warmup_steps} of Train.epochs_iters {settings.epochs_iters} would "
            f"leave too few epochs for the decay; warming up for {settings.warmup_epochs}."
        )
    rate = settings.peak_learning_rate
    if rate > _HIGH_LEARNING_RATE:
        remarks.append(
            f"Note: Train.learning_rate {rate:g} is high for AdamW; PaddleClas's recipes have 1e-4, and 5e-5 for CLIP."
        )
    if settings.amp != "OFF" and Device.parse(settings.device).kind == "cpu":
        remarks.append("Note: Train.amp has no effect on the CPU; training in float32.")
    elif settings.amp == "O2":
        remarks.append("Note: Train.amp O2 trains as O1, which keeps operations that lose from float16 in float32.")
    return remarks


def _compare(settings: TrainSettings, data: TrainingData, group: ProcessGroup, checkpoint: Checkpoint) -> list[str]:
    """Check that a checkpoint is of this training; return notes about the differences that are allowed."""
    states = checkpoint.states
    begun = TrainSettings.from_config(states["config"])  # with defaults for fields that it does not have
    changes = {
        name: f"Train.{name.removeprefix('peak_')} was {getattr(begun, name)}, is {getattr(settings, name)}"
        for name in (*_MUST_AGREE, *_MAY_CHANGE)
        if getattr(begun, name) != getattr(settings, name)
    }
    differences = [changes[name] for name in _MUST_AGREE if name in changes]
    if states["world_size"] != group.size:
        differences.append(f"the number of processes was {states['world_size']}, is {group.size}")
    changed = [name for name, digest in data.digests.items() if states["digests"][name] != digest]
    if changed:
        differences.append(f"{', '.join(changed)} of the dataset changed")
    if differences:
        raise TrainingError(
            f"Train.resume_path: expected a checkpoint of this training, but {'; '.join(differences)}. Resume with the "
            f"settings that it was started with, or start a new training from its weights "
            f"(Train.pretrain_weight_path)."
        )
    return [f"Note: {change}; the result will differ from an uninterrupted training's." for change in changes.values()]
