"""The six official models: names, downloads, architecture and the figures that PaddleX publishes for them.

Source: PaddleX's tutorial of the image multi-label classification module (names, URLs, mAP, sizes) and PaddleClas's
multi-label configurations (backbone classes, decoder inputs).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from importlib import resources
from typing import Any, Final

from mlcls.errors import ModelFormatError
from mlcls.model.spec import ImageTransform, ModelSpec

_HOST: Final = "https://paddle-model-ecology.bj.bcebos.com/paddlex"

DEFAULT_THRESHOLD: Final = 0.5
DEFAULT_SIZE: Final = (448, 448)

# The transform of all six models: resize, then ImageNet normalization.
DEFAULT_TRANSFORM: Final = ImageTransform(
    height=DEFAULT_SIZE[0],
    width=DEFAULT_SIZE[1],
    resize_backend="pil",
    interpolation="BILINEAR",
    scale=1 / 255,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)


@dataclasses.dataclass(frozen=True)
class OfficialModel:
    """One model of PaddleX's model list.

    Attributes:
        name: PaddleX's name, which is the ensemble's.
        backbone: Name of the backbone in PaddleClas's `build_model`.
        decoder_channels: Channels that the ML-Decoder head takes from the backbone.
        mean_average_precision: mAP in percent on COCO2017 with the official weights.
        size_mb: Size of the official inference model in MB.
        arch_options: What else `build_model` needs under `Arch`.
        decoder_options: What else it needs under `MLDecoder`.
    """

    name: str
    backbone: str
    decoder_channels: int
    mean_average_precision: float
    size_mb: float
    arch_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    decoder_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def inference_url(self) -> str:
        """The URL of the archive with the inference model."""
        return f"{_HOST}/official_inference_model/paddle3.0rc0/{self.name}_infer.tar"

    @property
    def pretrained_url(self) -> str:
        """The URL of the training weights (`.pdparams`)."""
        return f"{_HOST}/official_pretrained_model/{self.name}_pretrained.pdparams"


OFFICIAL_MODELS: Final[Mapping[str, OfficialModel]] = {
    model.name: model
    for model in (
        OfficialModel(
            "CLIP_vit_base_patch16_448_ML",
            "CLIP_vit_base_patch16_224",
            768,
            89.15,
            325.6,
            {"return_embed": False, "use_fused_attn": False},
            {"remove_layers": [], "replace_layer": "head"},
        ),
        OfficialModel("PP-HGNetV2-B0_ML", "PPHGNetV2_B0", 2048, 80.98, 39.6),
        OfficialModel("PP-HGNetV2-B4_ML", "PPHGNetV2_B4", 2048, 87.96, 88.5),
        OfficialModel("PP-HGNetV2-B6_ML", "PPHGNetV2_B6", 2048, 91.25, 286.5),
        OfficialModel("PP-LCNet_x1_0_ML", "PPLCNet_x1_0", 1280, 77.96, 29.4),
        OfficialModel("ResNet50_ML", "ResNet50", 2048, 83.50, 108.9),
    )
}


def official_model(name: str) -> OfficialModel:
    """Return the catalog's entry for a name.

    Raises:
        ModelFormatError: No official model has this name.
    """
    if name not in OFFICIAL_MODELS:
        raise ModelFormatError(f"{name!r} is not one of the six models; expected one of {', '.join(OFFICIAL_MODELS)}.")
    return OFFICIAL_MODELS[name]


def coco_labels() -> tuple[str, ...]:
    """Return COCO's 80 labels by class id, those of the official models."""
    text = resources.files("mlcls.model").joinpath("coco_labels.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())


def official_spec(name: str) -> ModelSpec:
    """Return the spec of an official model before import: no hashes, PaddleX's labels, thresholds and transform.

    Raises:
        ModelFormatError: No official model has this name.
    """
    name, labels = official_model(name).name, coco_labels()
    return ModelSpec(name, name, labels, (DEFAULT_THRESHOLD,) * len(labels), DEFAULT_TRANSFORM)
