"""Write a network as a PaddleX inference model: `inference.json`, `inference.pdiparams`, `inference.yml`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mlcls.base.documents import change
from mlcls.base.files import staged_folder, write_text
from mlcls.errors import SpecError
from mlcls.images.photos import photo_pixels
from mlcls.images.transforms import normalize
from mlcls.model.catalog import DEFAULT_SIZE, DEFAULT_THRESHOLD, official_spec
from mlcls.model.spec import ModelSpec
from mlcls.paddle.inference_yml import INFERENCE_YML, format_inference_yml
from mlcls.paddle.runtime import import_paddle
from mlcls.training.architectures import build_network, load_trained_network
from mlcls.training.initialization import make_input_sensitive

if TYPE_CHECKING:
    import paddle

# Photos for a fresh network's statistics; few, since the largest networks need a second or more for each.
CALIBRATION_PHOTOS: Final = 8


def export_model(
    architecture: str,
    folder: Path,
    *,
    labels: Sequence[str] | None = None,
    size: tuple[int, int] | None = None,
    threshold: float | None = None,
    weights: Path | None = None,
    seed: int = 0,
    photos: Sequence[Path] = (),
    with_sigmoid: bool = True,
) -> None:
    """Export a trained or freshly initialized model as a PaddleX inference model.

    A fresh model is made sensitive to its input (see `mlcls.training.initialization`); the same seed gives the same
    weights on the same kind of processor.

    Args:
        architecture: Name of one of the six models.
        folder: Folder of the model; an existing model is replaced when the new one is complete.
        labels: Label of each class id; COCO's 80 by default.
        size: Input size (height, width); (448, 448) by default.
        threshold: Threshold of every label; 0.5 by default.
        weights: Trained parameters (`.pdparams`); None for a fresh network.
        seed: Seed of a fresh network.
        photos: Photos for a fresh network's statistics; crops of scikit-learn's two sample photos by default.
        with_sigmoid: Whether the graph ends in the sigmoid, as in PaddleX's own exports. Without it, PaddleX takes the
            outputs for scores; mlcls detects it and applies the sigmoid in either case.

    Raises:
        ModelFormatError: The architecture is not one of the six, or the weights are another's.
        SpecError: Labels, thresholds or size cannot be served.
        MissingExtraError: The extra `train` is not installed.
    """
    paddle = import_paddle("train")
    spec = make_spec(architecture, labels, size, threshold)
    with paddle.utils.unique_name.guard():  # parameter names, and so the file, as for the first model
        if weights is not None:
            network = load_trained_network(architecture, spec.num_labels, weights)
        else:
            network = build_network(architecture, spec.num_labels, seed=seed)
            pixels = photo_pixels(photos, spec.transform, CALIBRATION_PHOTOS, seed)
            if len(pixels) < 4:
                raise SpecError(f"photos: expected at least 4 different photos, got {len(pixels)}.")
            make_input_sensitive(network, normalize(pixels, spec.transform))
        with staged_folder(folder) as staging:
            _save_graph(network, spec, staging, with_sigmoid)
            write_text(staging / INFERENCE_YML, format_inference_yml(spec))


def make_spec(
    architecture: str,
    labels: Sequence[str] | None = None,
    size: tuple[int, int] | None = None,
    threshold: float | None = None,
) -> ModelSpec:
    """Return the spec of a model that is not exported yet; see `export_model`."""
    official = official_spec(architecture)
    label_list = official.labels if labels is None else tuple(labels)
    height, width = DEFAULT_SIZE if size is None else size
    if min(height, width) < 32:
        raise SpecError(f"size: expected at least 32x32, got {height}x{width}.")
    return change(
        official,
        SpecError,
        labels=label_list,
        thresholds=(DEFAULT_THRESHOLD if threshold is None else threshold,) * len(label_list),
        transform=change(official.transform, SpecError, height=height, width=width),
    )


def _save_graph(network: paddle.nn.Layer, spec: ModelSpec, folder: Path, with_sigmoid: bool) -> None:
    import paddle

    class Scorer(paddle.nn.Layer):  # type: ignore[misc]  # paddle is untyped
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: paddle.Tensor) -> paddle.Tensor:
            logits = self.network(x)
            return paddle.nn.functional.sigmoid(logits) if with_sigmoid else logits

    scorer = Scorer()
    scorer.eval()
    shape = [None, 3, spec.transform.height, spec.transform.width]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        static = paddle.jit.to_static(
            scorer, input_spec=[paddle.static.InputSpec(shape=shape, dtype="float32", name="x")], full_graph=True
        )
        paddle.jit.save(static, os.fspath(folder / "inference"))
