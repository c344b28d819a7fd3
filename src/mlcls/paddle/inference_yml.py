"""Read and write PaddleX's `inference.yml`, which has what a `ModelSpec` needs.

Every operation and option is either supported or an error that names it, since an option that is ignored would give
wrong scores, not a crash. The rules are those of PaddleX 3.7
(`paddlex/inference/models/image_classification/predictor.py` and `.../image_multilabel_classification`).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec

from mlcls.base.documents import Document, convert
from mlcls.base.text import clip, one_line
from mlcls.base.yaml_file import YamlError, read_yaml
from mlcls.errors import SpecError, ThresholdError
from mlcls.model.postprocess import resolve_thresholds
from mlcls.model.spec import ImageTransform, ModelSpec, ResizeBackend

INFERENCE_YML: Final = "inference.yml"


class _Global(Document, frozen=True):
    model_name: str


class _Resize(Document, frozen=True):
    size: int | tuple[int, int] | None = None  # width and height
    interpolation: str = "LINEAR"
    backend: ResizeBackend = "cv2"
    resize_short: Any = None


class _Normalize(Document, frozen=True):
    scale: float = 1 / 255
    mean: float | tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: float | tuple[float, float, float] = (0.229, 0.224, 0.225)
    order: Annotated[str, msgspec.Meta(max_length=0)] = ""  # height, width, channels
    channel_num: Literal[3] = 3


class _Operation(Document, frozen=True):
    """One operation, by its name; a model has all of them, in this order."""

    ResizeImage: _Resize | None = None
    NormalizeImage: _Normalize | None = None
    ToCHWImage: Annotated[dict[str, Any], msgspec.Meta(max_length=0)] | None = None


class _PreProcess(Document, frozen=True):
    transform_ops: list[_Operation]


class _Output(Document, frozen=True):
    threshold: Any
    label_list: Annotated[list[Any], msgspec.Meta(min_length=1)]


class _PostProcess(Document, frozen=True):
    MultiLabelThreshOutput: _Output


class _File(Document, frozen=True):
    Global: _Global
    PreProcess: _PreProcess
    PostProcess: _PostProcess
    Hpi: Any = None  # settings of PaddleX's high-performance runtimes, which do not change the scores


@dataclasses.dataclass(frozen=True)
class InferenceConfig:
    """What an `inference.yml` says: `labels` by class id, with their `thresholds`."""

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


def parse_inference_config(document: Any) -> InferenceConfig:
    """Parse the document of an `inference.yml`.

    Raises:
        SpecError: It asks for something that mlcls cannot do; the text names the key.
    """
    content = convert(document, _File, SpecError, remedy="export the model with PaddleX, for multi-label images")
    names = [name for operation in document["PreProcess"]["transform_ops"] for name in operation]
    operations = content.PreProcess.transform_ops
    if len(operations) != len(names) or names != list(_Operation.__struct_fields__):
        raise SpecError(
            f"PreProcess.transform_ops: expected {', '.join(_Operation.__struct_fields__)}, each once and in this "
            f"order, got {', '.join(names) or 'none'}."
        )
    output = content.PostProcess.MultiLabelThreshOutput
    for index, label in enumerate(output.label_list):
        if not isinstance(label, (str, int)) or isinstance(label, bool):  # PaddleX takes any, and prints `None`, `True`
            raise SpecError(
                f"PostProcess.MultiLabelThreshOutput.label_list[{index}]: expected text, got {clip(label)}, as YAML "
                f"reads it; put the label in quotes."
            )
    labels = tuple(map(str, output.label_list))
    try:
        thresholds = resolve_thresholds(output.threshold, labels)
    except ThresholdError as error:
        raise SpecError(f"PostProcess.MultiLabelThreshOutput.threshold: {error}") from None
    for label, threshold in zip(labels, thresholds, strict=True):
        if not 0 <= threshold <= 1:
            raise SpecError(
                f"PostProcess.MultiLabelThreshOutput.threshold: expected numbers from 0 to 1, as scores are, got "
                f"{threshold:g} for {clip(label)}."
            )
    transform = _make_transform(operations[0].ResizeImage or _Resize(), operations[1].NormalizeImage or _Normalize())
    return InferenceConfig(content.Global.model_name, labels, thresholds, transform)


def format_inference_yml(spec: ModelSpec) -> str:
    """Return the `inference.yml` of a spec, as PaddleX's own export writes it."""
    import yaml

    transform = spec.transform
    uniform = len(set(spec.thresholds)) == 1
    resize = {
        "size": [transform.width, transform.height],
        "interpolation": transform.interpolation.lower(),
        "backend": transform.resize_backend,
    }
    normalize = {
        "scale": transform.scale,
        "mean": list(transform.mean),
        "std": list(transform.std),
        "order": "",
        "channel_num": 3,
    }
    operations = [{"ResizeImage": resize}, {"NormalizeImage": normalize}, {"ToCHWImage": None}]
    output = {"threshold": spec.thresholds[0] if uniform else list(spec.thresholds), "label_list": list(spec.labels)}
    document = {
        "Global": {"model_name": spec.architecture},
        "PreProcess": {"transform_ops": operations},
        "PostProcess": {"MultiLabelThreshOutput": output},
    }
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True)


def _make_transform(resize: _Resize, normalize: _Normalize) -> ImageTransform:
    if resize.size is None or resize.resize_short is not None:
        raise SpecError(
            f"PreProcess.transform_ops.ResizeImage: expected `size`, an integer or [width, height], and no "
            f"`resize_short`, which gives images of different shapes, and a batch needs one shape; got size: "
            f"{clip(resize.size)} and resize_short: {clip(resize.resize_short)}."
        )
    width, height = (resize.size, resize.size) if isinstance(resize.size, int) else resize.size
    mean, std = (
        (value, value, value) if isinstance(value, float) else value for value in (normalize.mean, normalize.std)
    )
    fields = {
        "width": width,
        "height": height,
        "resize_backend": resize.backend,
        "interpolation": resize.interpolation.upper(),
        "scale": normalize.scale,
        "mean": mean,
        "std": std,
    }
    return convert(fields, ImageTransform, SpecError, "PreProcess.transform_ops")
