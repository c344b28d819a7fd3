"""Mode `evaluate` of a PaddleX configuration: evaluate trained weights (`.pdparams`) on the dataset's `val.txt`."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
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
from mlcls.model.spec import ModelSpec
from mlcls.paddle.inference_yml import INFERENCE_YML, read_inference_yml
from mlcls.paddlex.config import PaddleXConfig
from mlcls.training.architectures import find_weights, load_trained_network
from mlcls.training.export import make_spec
from mlcls.training.processes import set_device
from mlcls.training.run_folder import INFERENCE, RunFolder
from mlcls.training.settings import Device

if TYPE_CHECKING:
    import paddle


class NetworkRunner:
    """A paddle network in evaluation mode, (N, 3, H, W) float32 to logits, on paddle's current device."""

    name = "weights"

    def __init__(self, network: paddle.nn.Layer, spec: ModelSpec) -> None:
        self._network, self._spec = network, spec

    def scores(self, pixels: Pixels) -> Scores:
        """Return scores (N, num_labels) float32 of `pixels` (N, H, W, 3) uint8 RGB."""
        import paddle

        with paddle.no_grad():
            logits = self._network(paddle.to_tensor(normalize(pixels, self._spec.transform)))
        return apply_sigmoid(np.asarray(logits.numpy(), np.float32))


def run(config: PaddleXConfig) -> dict[str, Any]:
    """Evaluate `Evaluate.weight_path` and print the metrics; return the content of `evaluate_result.json`.

    None means the best weights of the training in `Global.output`, as PaddleX's configuration files have them.
    Number of labels, input size, threshold, batch size and threads are those of the section `Train`. Of several
    devices, the first one is used.

    Raises:
        ConfigError: There are no weights, or `Train.image_size` is not theirs.
        TrainingError: There is no such device, or no such file of weights.
        ModelFormatError: The weights are not of this architecture and these labels.
        DatasetError: The dataset is wrong, or an image cannot be used.
        MissingExtraError: The extra `train` is not installed.
    """
    require_matplotlib()  # fails now, not after an hour
    settings = config.settings
    annotations = settings.dataset_dir / VAL_FILE
    labels = read_dataset_labels(settings.dataset_dir, settings.num_classes)
    weight_path = config.Evaluate.weight_path or str(RunFolder(settings).weights)
    weights = find_weights(weight_path, "Evaluate.weight_path")
    spec = make_spec(settings.model, labels, settings.size, settings.threshold)
    _compare_with_export(weights.parent / INFERENCE / INFERENCE_YML, spec, settings.dataset_dir)
    device = Device.parse(settings.device)
    set_device(dataclasses.replace(device, ids=device.ids[:1]))
    network = load_trained_network(settings.model, len(labels), weights)
    evaluation = evaluate(
        DecodingRunner(NetworkRunner(network, spec), spec),
        annotations,
        spec.thresholds,
        batch_size=settings.batch_size,
        num_workers=max(1, settings.reader_count()),
        after_batch=_make_log(config.Evaluate.log_interval),
    )
    result = write_report(evaluation, settings.output, f"{settings.model}, {annotations}")
    print(format_table(evaluation))
    return {**result, "weight_path": weight_path}


def _compare_with_export(exported: Path, spec: ModelSpec, dataset: Path) -> None:
    """Compare with the model that a training exported next to its weights, which do not tell input size or labels.

    Raises:
        ConfigError: The input size differs, which would silently give other metrics.
        DatasetError: The labels differ.
    """
    if not exported.is_file():
        return
    config = read_inference_yml(exported)
    trained, asked = ((each.height, each.width) for each in (config.transform, spec.transform))
    if trained != asked:
        raise ConfigError(
            f"Train.image_size: expected {trained}, the height and width that these weights were exported with "
            f"({exported}), got {asked}."
        )
    require_labels(dataset / DATASET_LABELS_FILE, spec.labels, config.labels)


def _make_log(interval: int) -> Callable[[int], None]:
    """Return a function for the end of each batch that prints a line every few batches, above the progress bar."""
    from tqdm import tqdm

    numbers = itertools.count(1)

    def log(images: int) -> None:
        if next(numbers) % interval == 0:
            tqdm.write(f"evaluated {images} images")

    return log
