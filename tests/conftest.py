"""Fixtures that several test files use."""

from __future__ import annotations

import pytest

from mlcls.model_spec import ImageTransform, ModelSpec


@pytest.fixture
def custom_spec() -> ModelSpec:
    """An imported model that is unlike the official ones: three labels, 96x64, a threshold for each label."""
    return ModelSpec(
        name="animals-v2",
        architecture="PP-LCNet_x1_0_ML",
        labels=("cat", "犬", 'a "fox"'),
        thresholds=(0.5, 0.3, 0.75),
        transform=ImageTransform(
            height=96,
            width=64,
            resize_backend="cv2",
            interpolation="LINEAR",
            scale=1 / 255,
            mean=(0.1, 0.2, 0.3),
            std=(0.4, 0.5, 0.6),
        ),
        source_activation="sigmoid",
        source_sha256={"inference.json": "1" * 64, "inference.pdiparams": "2" * 64, "inference.yml": "3" * 64},
        onnx_sha256="4" * 64,
    )
