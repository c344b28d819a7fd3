"""Mode `evaluate` of a PaddleX configuration: evaluate trained weights (`.pdparams`) on the dataset's `val.txt`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlcls.base.pictures import require_matplotlib
from mlcls.dataset.annotations import VAL_FILE
from mlcls.dataset.labels import DATASET_LABELS_FILE, read_dataset_labels
from mlcls.engines.runners import DecodingRunner, Pixels, Scores
from mlcls.errors import ConfigError
from mlcls.evaluation.evaluate import evaluate, require_labels
from mlcls.evaluation.report import format_table, write_report
from mlcls.images.transforms import normalize
from mlcls.model.postprocess import apply_sigmoid
from mlcls.model.spec import ImageTransform
from mlcls.paddle.inference_yml import INFERENCE_YML, read_inference_yml
from mlcls.paddle.runtime import import_paddle
from mlcls.training.architectures import load_trained_network
from mlcls.training.pretrained import find_weights
from mlcls.training.processes import set_device
from mlcls.training.run_folder import INFERENCE
from mlcls.training.settings import Device, TrainSettings

if TYPE_CHECKING:
    import paddle


@dataclasses.dataclass(frozen=True)
class NetworkInput:
    """What a `DecodingRunner` needs of a model that has no spec yet.

    Attributes:
        labels: Label of each class id.
        transform: Transform from an image to `pixels`.
    """

    labels: tuple[str, ...]
    transform: ImageTransform


class NetworkRunner:
    """A paddle network on paddle's current device."""

    name = "weights"

    def __init__(self, network: paddle.nn.Layer, transform: ImageTransform) -> None:
        """Put the network into evaluation mode.

        Args:
            network: (N, 3, H, W) float32 to logits.
            transform: Transform with the normalization.
        """
        network.eval()
        self._network = network
        self._transform = transform

    def scores(self, pixels: Pixels) -> Scores:
        """Return scores (N, num_labels) float32 of `pixels` (N, H, W, 3) uint8 RGB."""
        import paddle

        with paddle.no_grad():
            logits = self._network(paddle.to_tensor(normalize(pixels, self._transform)))
        return apply_sigmoid(np.asarray(logits.numpy(), np.float32))


def evaluate_from_config(config: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Evaluate `Evaluate.weight_path` and print the metrics.

    Number of labels, input size, threshold, batch size and threads are those of the section `Train`. Of several
    devices, the first one is used.

    Args:
        config: The sections of the configuration by name; `Global`, `Train` and `Evaluate` are read.

    Returns:
        The content of `evaluate_result.json` without `done_flag`.

    Raises:
        ConfigError: A field of `Evaluate` is wrong, or `Train.image_size` is not that of the weights.
        TrainingError: A field of `Train` is wrong, or there is no such file of weights.
        ModelFormatError: The weights are not of this architecture and these labels.
        DatasetError: The dataset is wrong, or an image cannot be used.
        MissingExtraError: The extra `train` is not installed.
    """
    require_matplotlib()  # fails now, not after an hour
    settings = TrainSettings.from_config(config)
    source, interval = config["Evaluate"]["weight_path"], config["Evaluate"]["log_interval"]
    if not source:
        raise ConfigError("Evaluate.weight_path: expected a .pdparams file or its URL, got none.")
    if interval < 1:
        raise ConfigError(f"Evaluate.log_interval: expected an integer of at least 1, got {interval}.")
    labels = read_dataset_labels(settings.dataset_dir, settings.num_classes)
    weights = find_weights(source, "Evaluate.weight_path")
    _compare_with_export(weights.parent / INFERENCE / INFERENCE_YML, settings, labels)
    import_paddle("train")
    device = Device.parse(settings.device)
    set_device(dataclasses.replace(device, ids=device.ids[:1]))
    network = load_trained_network(settings.model, len(labels), weights)
    runner = NetworkRunner(network, settings.transform)
    evaluation = evaluate(
        DecodingRunner(runner, NetworkInput(labels, settings.transform)),
        settings.dataset_dir / VAL_FILE,
        [settings.threshold] * len(labels),
        batch_size=settings.batch_size,
        num_workers=max(1, settings.num_workers),
        after_batch=_Log(interval),
    )
    result = write_report(evaluation, settings.output, f"{settings.model}, {settings.dataset_dir / VAL_FILE}")
    print(format_table(evaluation))
    return {**result, "weight_path": source}


def _compare_with_export(exported: Path, settings: TrainSettings, labels: tuple[str, ...]) -> None:
    """Compare with the model that a training exported next to its weights, which do not tell input size or labels.

    Raises:
        ConfigError: The input size differs, which would silently give other metrics.
        DatasetError: The labels differ.
    """
    if not exported.is_file():
        return
    config = read_inference_yml(exported)
    trained, asked = ((each.height, each.width) for each in (config.transform, settings.transform))
    if trained != asked:
        raise ConfigError(
            f"Train.image_size: expected {trained}, the height and width that these weights were exported with "
            f"({exported}), got {asked}."
        )
    require_labels(settings.dataset_dir / DATASET_LABELS_FILE, labels, config.labels)


class _Log:
    """Prints a line every few batches, above the progress bar."""

    def __init__(self, interval: int) -> None:
        self._interval = interval
        self._batches = 0

    def __call__(self, images: int) -> None:
        from tqdm import tqdm

        self._batches += 1
        if self._batches % self._interval == 0:
            tqdm.write(f"evaluated {images} images")
