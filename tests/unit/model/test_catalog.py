"""The six official models, against PaddleX's tutorial."""

from __future__ import annotations

import re

import pytest

from mlcls.errors import ModelFormatError
from mlcls.model.catalog import OFFICIAL_MODELS, coco_labels, official_model, official_spec
from mlcls.model.spec import ImageTransform

# Name, mAP in percent and size in MB as PaddleX's tutorial lists them; channels of the decoder's input.
PUBLISHED = {
    "CLIP_vit_base_patch16_448_ML": (89.15, 325.6, 768),
    "PP-HGNetV2-B0_ML": (80.98, 39.6, 2048),
    "PP-HGNetV2-B4_ML": (87.96, 88.5, 2048),
    "PP-HGNetV2-B6_ML": (91.25, 286.5, 2048),
    "PP-LCNet_x1_0_ML": (77.96, 29.4, 1280),
    "ResNet50_ML": (83.50, 108.9, 2048),
}


def test_models() -> None:
    assert {
        model.name: (model.mean_average_precision, model.size_mb, model.decoder_channels)
        for model in OFFICIAL_MODELS.values()
    } == PUBLISHED


@pytest.mark.parametrize("name", PUBLISHED)
def test_urls(name: str) -> None:
    model, host = official_model(name), "https://paddle-model-ecology.bj.bcebos.com/paddlex"
    assert model.inference_url == f"{host}/official_inference_model/paddle3.0rc0/{name}_infer.tar"
    assert model.pretrained_url == f"{host}/official_pretrained_model/{name}_pretrained.pdparams"


@pytest.mark.parametrize("name", ["", "ResNet50", "resnet50_ml", "PP-LCNet_x1_0"])
def test_unknown_model(name: str) -> None:
    for find in (official_model, official_spec):
        with pytest.raises(ModelFormatError) as caught:
            find(name)
        assert str(caught.value).startswith(f"{name!r} is not one of the six models; expected one of ")
        assert all(known in str(caught.value) for known in PUBLISHED)


def test_labels() -> None:
    labels = coco_labels()
    assert len(labels) == len(set(labels)) == 80
    assert all(re.fullmatch(r"[a-z]+( [a-z]+)*", label) for label in labels)
    # those of the result that the tutorial prints for its sample photo, and the last one
    known = {39: "bottle", 43: "knife", 45: "bowl", 46: "banana", 47: "apple", 49: "orange", 60: "dining table"}
    assert {class_id: labels[class_id] for class_id in (*known, 0, 79)} == {**known, 0: "person", 79: "toothbrush"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_spec(name: str) -> None:
    spec = official_spec(name)
    assert (spec.name, spec.architecture, spec.labels) == (name, name, coco_labels())
    assert spec.thresholds == (0.5,) * 80
    assert spec.transform == ImageTransform(
        448, 448, "pil", "BILINEAR", 1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    )
    assert (spec.source_activation, spec.onnx_sha256, dict(spec.source_sha256)) == (None, None, {})
