"""Read and write PaddleX's `inference.yml`, which has what a `ModelSpec` needs.

Every operation and option is either supported or an error that names it, since an option that is ignored would give
wrong scores, not a crash. The rules are those of PaddleX 3.7
(`paddlex/inference/models/image_classification/predictor.py` and `.../image_multilabel_classification`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from mlcls.base.documents import convert
from mlcls.base.text import clip, one_line
from mlcls.base.yaml_file import YamlError, read_yaml
from mlcls.errors import SpecError, ThresholdError
from mlcls.model.postprocess import resolve_thresholds
from mlcls.model.spec import ImageTransform, ModelSpec

INFERENCE_YML: Final = "inference.yml"

# PaddleX's defaults of options that a file may leave out.
_IMAGENET_MEAN: Final = [0.485, 0.456, 0.406]
_IMAGENET_STD: Final = [0.229, 0.224, 0.225]


@dataclasses.dataclass(frozen=True)
class InferenceConfig:
    """What an `inference.yml` says.

    Attributes:
        model_name: `Global.model_name`.
        labels: Label of each class id.
        thresholds: Threshold of each label.
        transform: From a decoded image to the network's input.
    """

    model_name: str
    labels: tuple[str, ...]
    thresholds: tuple[float, ...]
    transform: ImageTransform


def read_inference_yml(path: Path) -> InferenceConfig:
    """Read an `inference.yml`.

    Raises:
        SpecError: The file is missing, not YAML, or asks for something that mlcls cannot do; the text names the key.
    """
    try:
        document = read_yaml(path)
    except FileNotFoundError:
        raise SpecError(
            f"{path} does not exist; a PaddleX inference model has an {INFERENCE_YML} next to its graph."
        ) from None
    except (OSError, YamlError) as error:
        raise SpecError(f"{path}: expected a YAML document, got one that cannot be read: {one_line(error)}") from None
    try:
        return parse_inference_config(document)
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from None


def parse_inference_config(document: object) -> InferenceConfig:
    """Parse the document of an `inference.yml`.

    Raises:
        SpecError: It asks for something that mlcls cannot do; the text names the key.
    """
    # `Hpi` has settings of PaddleX's high-performance runtimes, which choose an engine and do not change the scores.
    root = _mapping("the document", document, required=("Global", "PreProcess", "PostProcess"), optional=("Hpi",))
    model = _mapping("Global", root["Global"], required=("model_name",))
    if not isinstance(model["model_name"], str):
        raise SpecError(f"Global.model_name: expected a name, got {clip(model['model_name'])}.")
    labels, thresholds = _parse_postprocess(root["PostProcess"])
    return InferenceConfig(model["model_name"], labels, thresholds, _parse_preprocess(root["PreProcess"]))


def format_inference_yml(spec: ModelSpec) -> str:
    """Return the `inference.yml` of a spec, as PaddleX's own export writes it."""
    import yaml

    transform = spec.transform
    uniform = len(set(spec.thresholds)) == 1
    document = {
        "Global": {"model_name": spec.architecture},
        "PreProcess": {
            "transform_ops": [
                {
                    "ResizeImage": {
                        "size": [transform.width, transform.height],
                        "interpolation": transform.interpolation.lower(),
                        "backend": transform.resize_backend,
                    }
                },
                {
                    "NormalizeImage": {
                        "scale": transform.scale,
                        "mean": list(transform.mean),
                        "std": list(transform.std),
                        "order": "",
                        "channel_num": 3,
                    }
                },
                {"ToCHWImage": None},
            ]
        },
        "PostProcess": {
            "MultiLabelThreshOutput": {
                "threshold": spec.thresholds[0] if uniform else list(spec.thresholds),
                "label_list": list(spec.labels),
            }
        },
    }
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True)


def _parse_preprocess(value: object) -> ImageTransform:
    operations = _mapping("PreProcess", value, required=("transform_ops",))["transform_ops"]
    if not isinstance(operations, list):
        raise SpecError(f"PreProcess.transform_ops: expected a list of operations, got {clip(operations)}.")
    known: dict[str, Callable[[object], dict[str, Any]]] = {
        "ResizeImage": _parse_resize,
        "NormalizeImage": _parse_normalize,
        "ToCHWImage": _parse_to_chw,
    }
    fields: dict[str, Any] = {}
    seen: list[str] = []
    for operation in operations:
        if not isinstance(operation, dict) or len(operation) != 1:
            raise SpecError(f"PreProcess.transform_ops: expected operations with one name each, got {clip(operation)}.")
        name, options = next(iter(operation.items()))
        if name not in known:
            raise SpecError(
                f"PreProcess.transform_ops.{name}: unknown operation; mlcls and PaddleX's multi-label predictor know "
                f"{', '.join(known)}. Export the model again with these."
            )
        fields.update(known[name](options))
        seen.append(name)
    if seen != list(known):
        raise SpecError(
            f"PreProcess.transform_ops: expected {', '.join(known)}, each once and in this order, got "
            f"{', '.join(seen) or 'none'}."
        )
    return convert(fields, ImageTransform, SpecError, "PreProcess.transform_ops")


def _parse_resize(value: object) -> dict[str, Any]:
    where = "PreProcess.transform_ops.ResizeImage"
    options = _mapping(where, value, required=(), optional=("size", "interpolation", "backend", "resize_short"))
    if options.get("resize_short") is not None:
        raise SpecError(
            f"{where}.resize_short: expected `size` (the image is resized to it directly), got resize_short: "
            f"{clip(options['resize_short'])}, which gives images of different shapes, and a batch needs one shape."
        )
    size = options.get("size")
    sides = [size, size] if isinstance(size, int) else size
    if not isinstance(sides, list) or len(sides) != 2 or not all(type(side) is int for side in sides):
        raise SpecError(f"{where}.size: expected an integer or [width, height], got {clip(size)}.")
    backend = options.get("backend", "cv2")
    interpolation = options.get("interpolation", "LINEAR")
    if not isinstance(backend, str):
        raise SpecError(f"{where}.backend: expected 'pil' or 'cv2', got {clip(backend)}.")
    if not isinstance(interpolation, str):
        raise SpecError(f"{where}.interpolation: expected a name, got {clip(interpolation)}.")
    return {
        "width": sides[0],
        "height": sides[1],
        "resize_backend": backend,
        "interpolation": interpolation.upper(),
    }


def _parse_normalize(value: object) -> dict[str, Any]:
    where = "PreProcess.transform_ops.NormalizeImage"
    options = _mapping(where, value, required=(), optional=("scale", "mean", "std", "order", "channel_num"))
    if options.get("order", "") != "":
        raise SpecError(f"{where}.order: expected '' (height, width, channels), got {clip(options['order'])}.")
    if options.get("channel_num", 3) != 3:
        raise SpecError(f"{where}.channel_num: expected 3, got {clip(options['channel_num'])}.")
    mean, std = (
        [value] * 3 if isinstance(value, float) else value
        for value in (options.get("mean", _IMAGENET_MEAN), options.get("std", _IMAGENET_STD))
    )
    return {"scale": options.get("scale", 1 / 255), "mean": mean, "std": std}


def _parse_to_chw(value: object) -> dict[str, Any]:
    if value:
        raise SpecError(f"PreProcess.transform_ops.ToCHWImage: expected no options, got {clip(value)}.")
    return {}


def _parse_postprocess(value: object) -> tuple[tuple[str, ...], tuple[float, ...]]:
    where = "PostProcess.MultiLabelThreshOutput"
    operations = _mapping("PostProcess", value, required=("MultiLabelThreshOutput",))
    options = _mapping(where, operations["MultiLabelThreshOutput"], required=("threshold", "label_list"))
    label_list = options["label_list"]
    if not isinstance(label_list, list) or not label_list:
        raise SpecError(f"{where}.label_list: expected a list of labels, got {clip(label_list)}.")
    for label in label_list:
        if isinstance(label, (list, dict, set)):
            raise SpecError(f"{where}.label_list: expected labels, got {clip(label)}.")
    labels = tuple(str(label) for label in label_list)  # PaddleX does the same: YAML reads the label `no` as a bool
    try:
        return labels, resolve_thresholds(options["threshold"], labels)
    except ThresholdError as error:
        raise SpecError(f"{where}.threshold: {error}") from None


def _mapping(where: str, value: object, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> Mapping[str, Any]:
    if value is None and not required:
        return {}
    if not isinstance(value, dict):
        raise SpecError(f"{where}: expected a mapping with {', '.join(required + optional)}, got {clip(value)}.")
    unknown = [key for key in value if key not in required + optional]
    if unknown:
        raise SpecError(f"{where}: unknown key {clip(unknown[0])}; expected only {', '.join(required + optional)}.")
    missing = [key for key in required if key not in value]
    if missing:
        raise SpecError(f"{where}: the key {clip(missing[0])} is missing; expected {', '.join(required)}.")
    return value
