"""Mode `export` of a PaddleX configuration: write trained weights as a PaddleX inference model to `Global.output`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from mlcls.base.files import held_folder
from mlcls.base.yaml_file import YamlError, read_yaml
from mlcls.dataset.labels import DATASET_LABELS_FILE, read_labels
from mlcls.errors import ConfigError, ModelFormatError, SpecError
from mlcls.model.catalog import OFFICIAL_MODELS, coco_labels
from mlcls.paddle.inference_yml import INFERENCE_YML
from mlcls.paddle.model import GRAPH_NAMES, PARAMETERS_NAME
from mlcls.paddlex.config import PaddleXConfig
from mlcls.training.architectures import find_weights, is_url
from mlcls.training.export import export_model
from mlcls.training.run_folder import CONFIG_FILE, LABEL_DICT_FILE

# File names of the official weights, by which local copies are recognized.
_OFFICIAL_FILES: Final = frozenset(model.pretrained_url.rpartition("/")[2] for model in OFFICIAL_MODELS.values())


def run(config: PaddleXConfig) -> dict[str, Any]:
    """Write `inference.json`, `inference.pdiparams` and `inference.yml` into `Global.output`.

    The labels are those of the training (`label_dict.txt` in the folder of the weights or the one above), else COCO's
    80 for official weights, else those of the dataset. Other files in the folder stay as they are. `Train.image_size`
    and `Train.threshold` become the model's. The result has `model_name`, the files under PaddleX's names,
    `num_classes` and `label_source`.

    Raises:
        ConfigError: `Export.weight_path` or `Train.num_classes` does not fit.
        SpecError: No labels are found, or the dataset's are not those of official weights.
        ModelFormatError: The weights are of another architecture or another number of labels.
        MlclsError: See `find_weights`, `read_labels` and `mlcls.training.export.export_model`.
    """
    source = config.Export.weight_path
    weights = find_weights(source, "Export.weight_path")
    source = str(source)
    training = None if is_url(source) else _find_training(weights)
    labels, label_source = _find_labels(source, training, config.Global.dataset_dir)
    wanted = config.Train.num_classes
    if wanted is not None and wanted != len(labels):
        raise ConfigError(f"Train.num_classes: expected {len(labels)}, as many as {label_source} has, got {wanted}.")
    if training is not None:
        _note_other_size(config, training)
    output = config.Global.output
    output.mkdir(parents=True, exist_ok=True)
    with held_folder(output) as staging:
        try:
            export_model(
                config.Global.model,
                staging / "inference",
                labels=labels,
                size=config.Train.size,
                threshold=config.Train.threshold,
                weights=weights,
            )
        except ModelFormatError as error:
            raise ModelFormatError(f"{error} The {len(labels)} labels were taken from {label_source}.") from None
        _move_model(staging / "inference", output)
    print(f"{output}: {config.Global.model}, {len(labels)} labels of {label_source}, weights of {source}")
    return {
        "model_name": config.Global.model,
        "inference_config": INFERENCE_YML,
        "pdmodel": GRAPH_NAMES[0],  # PaddleX's name for the field; its graphs are JSON files now
        "pdiparams": PARAMETERS_NAME,
        "num_classes": len(labels),
        "label_source": label_source,
    }


def _find_training(weights: Path) -> Path | None:
    above = weights.absolute().parents
    return next((folder for folder in above[:2] if (folder / LABEL_DICT_FILE).is_file()), None)


def _find_labels(source: str, training: Path | None, dataset: Path) -> tuple[tuple[str, ...], str]:
    if training is not None:
        return read_labels(training / LABEL_DICT_FILE), str(training / LABEL_DICT_FILE)
    path = dataset / DATASET_LABELS_FILE
    name = urlsplit(source).path if is_url(source) else source
    if Path(name).name in _OFFICIAL_FILES:
        labels = coco_labels()
        if path.is_file() and (own := read_labels(path)) != labels:
            raise SpecError(
                f"Export.weight_path: expected weights that were trained on {path} ({len(own)} labels), got official "
                f"ones, whose labels are COCO's {len(labels)}. Use the weights of your training, or a "
                f"Global.dataset_dir without {DATASET_LABELS_FILE}."
            )
        return labels, "COCO"
    if not path.is_file():
        raise SpecError(
            f"Export.weight_path: expected {LABEL_DICT_FILE} in the folder of {source} or the one above, or "
            f"{DATASET_LABELS_FILE} in Global.dataset_dir ({dataset}), found neither; put one there."
        )
    return read_labels(path), str(path)


def _note_other_size(config: PaddleXConfig, training: Path) -> None:
    """Print a note if the training had another input size: the model works, but was not trained for this one."""
    try:
        trained = read_yaml(training / CONFIG_FILE)["Train"]["image_size"]
    except (OSError, TypeError, KeyError, YamlError):
        return  # an older folder, or another program's; its settings are not needed
    if trained != config.Train.image_size:
        print(
            f"Note: Train.image_size is {config.Train.image_size}, the training's was {trained} "
            f"({training / CONFIG_FILE}).",
            file=sys.stderr,
        )


def _move_model(source: Path, target: Path) -> None:
    """Move the three files; `inference.yml` is removed first and moved last, so that a mixture is no model."""
    (target / INFERENCE_YML).unlink(missing_ok=True)
    for name in (GRAPH_NAMES[0], PARAMETERS_NAME, INFERENCE_YML):
        os.replace(source / name, target / name)
