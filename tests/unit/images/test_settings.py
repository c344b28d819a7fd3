"""Which images a model accepts: the settings, their way into the configuration, and from there to the backend."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

from mlcls.backends.triton_stub import StepArguments
from mlcls.base.documents import convert
from mlcls.errors import ConfigError, RepositoryError
from mlcls.images.settings import DEFAULT_IMAGE_SETTINGS, ImageSettings
from mlcls.model.spec import ModelSpec
from mlcls.repository.configurations import render_files
from mlcls.repository.settings import ModelSettings
from mlcls.repository.triton_config import ConfigBuilder

STRICT = ImageSettings(
    max_bytes=1_000_000,
    max_pixels=12_000_000,
    max_side=5000,
    max_aspect_ratio=10,
    max_frames=1,
    formats=("JPEG", "PNG"),
    accept_truncated=True,
    jpeg_oversampling=1.5,
)


def test_the_file_has_what_differs_and_may_leave_out_the_rest() -> None:
    for images, changes in (
        (STRICT, {name: getattr(STRICT, name) for name in STRICT.__struct_fields__} | {"formats": ["JPEG", "PNG"]}),
        (ImageSettings(max_side=5000), {"max_side": 5000}),
    ):
        text = ModelSettings(images=images).to_json()
        assert json.loads(text)["images"] == changes
        assert ModelSettings.from_json(text).images == images
    assert "images" not in json.loads(ModelSettings().to_json())


WRONG: list[tuple[str, Any, str]] = [
    ("max_size", 1, "unknown key max_size; expected only max_bytes, max_pixels"),
    ("max_bytes", 0, "max_bytes: expected int >= 1, got 0"),
    ("max_bytes", 1 << 31, "max_bytes: expected int <= 1073741824, got 2147483648"),
    ("max_pixels", 200_000_000, "max_pixels: expected int <= 178956970, got 200000000"),  # Pillow's limit
    ("max_aspect_ratio", float("nan"), "max_aspect_ratio: expected float >= 1.0, got nan"),
    ("jpeg_oversampling", 0.9, "jpeg_oversampling: expected float >= 1.0, got 0.9"),
    ("formats", [], "formats: expected array of length >= 1, got []"),
    ("formats", ["JPEG", "HEIC"], "formats[1]: expected one of JPEG, PNG, WebP, BMP, TIFF, GIF, AVIF, got 'HEIC'"),
]


@pytest.mark.parametrize(("key", "value", "words"), WRONG)
def test_wrong_values(key: str, value: Any, words: str) -> None:
    with pytest.raises(ConfigError) as raised:
        convert({key: value}, ImageSettings, ConfigError)
    assert str(raised.value).startswith(words)


def preprocess_arguments(spec: ModelSpec, settings: ModelSettings) -> StepArguments:
    """Return them as Triton gives them to the backend."""
    config = ConfigBuilder(spec, settings=settings).preprocess()
    text = json_format.MessageToJson(config, preserving_proto_field_name=True)
    return StepArguments(config.name, Path("1"), json.loads(text))


def test_the_backend_reads_what_the_file_says(custom_spec: ModelSpec) -> None:
    assert preprocess_arguments(custom_spec, ModelSettings(images=STRICT)).image_settings() == STRICT
    assert preprocess_arguments(custom_spec, ModelSettings()).image_settings() == DEFAULT_IMAGE_SETTINGS


def test_defaults_leave_the_configuration_as_it_is(custom_spec: ModelSpec) -> None:
    plain, strict = (
        render_files(custom_spec, settings=ModelSettings(images=each)) for each in (ImageSettings(), STRICT)
    )
    changed = {path for path in strict if strict[path] != plain.get(path)}
    assert changed == {f"{custom_spec.name}_preprocess/config.pbtxt"}  # which all targets take
    assert "parameters" not in plain[f"{custom_spec.name}_preprocess/config.pbtxt"]


@pytest.mark.parametrize(
    ("parameter", "words"),
    [
        ({"string_value": '{"max_side": 0}'}, "max_side: expected int >= 1, got 0."),
        ({"string_value": "many"}, "expected a JSON document, got invalid JSON"),
        ({"string_value": "[" * 100_000}, "expected a JSON document, got invalid JSON"),
        ({"string_value": '{"max_sides": 1}'}, "unknown key max_sides"),
        ("{}", "expected an object as JSON text, got None"),
    ],
)
def test_a_wrong_parameter_is_refused_when_the_model_is_loaded(parameter: object, words: str) -> None:
    arguments = StepArguments("animals_preprocess", Path("1"), {"parameters": {"images": parameter}})
    with pytest.raises(RepositoryError) as raised:
        arguments.image_settings()
    assert str(raised.value).startswith(f"The configuration of animals_preprocess: the parameter images: {words}")
    assert str(raised.value).endswith(" Run: mlcls repository.")
