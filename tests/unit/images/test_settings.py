"""Which images a model accepts: the settings, their way into the configuration, and from there to the backend."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

from mlcls.backends.triton_stub import StepArguments
from mlcls.errors import ConfigError, RepositoryError
from mlcls.images.settings import DEFAULT_IMAGE_SETTINGS, ImageSettings
from mlcls.model.spec import ModelSpec
from mlcls.repository.configurations import render_files
from mlcls.repository.settings import TARGETS, ModelSettings
from mlcls.repository.triton_config import build_preprocess

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


def test_there_and_back() -> None:
    assert ImageSettings.from_json(STRICT.to_json()) == STRICT
    assert ImageSettings.from_document(STRICT.changes()) == STRICT
    assert DEFAULT_IMAGE_SETTINGS.changes() == {}
    settings = ModelSettings(images=STRICT)
    assert ModelSettings.from_json(settings.to_json()) == settings
    assert "images" not in json.loads(ModelSettings().to_json())


def test_the_file_has_what_differs_and_may_leave_out_the_rest() -> None:
    text = ModelSettings(images=ImageSettings(max_side=5000)).to_json()
    assert json.loads(text)["images"] == {"max_side": 5000}


def test_the_order_of_formats_does_not_matter() -> None:
    assert ImageSettings(formats=("PNG", "JPEG")) == ImageSettings(formats=("JPEG", "PNG"))


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"max_size": 1}, "unknown key max_size; expected only max_bytes, max_pixels"),
    "zero": ({"max_bytes": 0}, "max_bytes: expected a whole number from 1 to 1073741824, got 0"),
    "a text": ({"max_side": "9"}, "max_side: expected a whole number from 1 to 65535, got '9'"),
    "a truth": ({"max_frames": True}, "max_frames: expected a whole number from 1 to 1000000, got True"),
    "a fraction": ({"max_pixels": 1.5}, "max_pixels: expected a whole number from 1 to 178956970, got 1.5"),
    "beyond Pillow's limit": ({"max_pixels": 200_000_000}, "max_pixels: expected a whole number from 1 to 178956970"),
    "a ratio below one": ({"max_aspect_ratio": 0.5}, "max_aspect_ratio: expected a number from 1 to 65535, got 0.5"),
    "no ratio": ({"max_aspect_ratio": float("nan")}, "max_aspect_ratio: expected a number from 1 to 65535, got nan"),
    "a huge ratio": ({"max_aspect_ratio": 10**400}, "max_aspect_ratio: expected a number from 1 to 65535, got 1000"),
    "too little": ({"jpeg_oversampling": 0.9}, "jpeg_oversampling: expected a number from 1 to 16 or null, got 0.9"),
    "a word": ({"accept_truncated": "yes"}, "accept_truncated: expected true or false, got 'yes'"),
    "no formats": ({"formats": []}, "formats: expected a list of different names out of JPEG, PNG, WebP"),
    "a format": ({"formats": ["JPEG", "HEIC"]}, "got ['JPEG', 'HEIC']"),
    "a format's case": ({"formats": ["jpeg"]}, "got ['jpeg']"),
    "twice": ({"formats": ["PNG", "PNG"]}, "got ['PNG', 'PNG']"),
    "not a list": ({"formats": "JPEG"}, "got 'JPEG'"),
    "lists": ({"formats": [["JPEG"]]}, "formats: expected a list"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_values(name: str) -> None:
    document, expected = WRONG[name]
    with pytest.raises(ConfigError) as raised:
        ImageSettings.from_document(document)
    assert expected in str(raised.value)
    file = {"schema_version": 1, "max_batch_size": 32, "targets": {}, "images": document}
    with pytest.raises(ConfigError) as raised:
        ModelSettings.from_json(json.dumps(file), "serving.json")
    assert str(raised.value).startswith("serving.json: images: ")


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000])
def test_no_object(text: str) -> None:
    with pytest.raises(ConfigError, match=r"expected an? (JSON )?object"):
        ImageSettings.from_json(text)


def preprocess_arguments(spec: ModelSpec, settings: ModelSettings) -> StepArguments:
    """Return them as Triton gives them to the backend."""
    config = json_format.MessageToJson(build_preprocess(spec, settings=settings), preserving_proto_field_name=True)
    return StepArguments(f"{spec.name}_preprocess", Path("1"), json.loads(config))


def test_the_backend_reads_what_the_file_says(custom_spec: ModelSpec) -> None:
    assert preprocess_arguments(custom_spec, ModelSettings(images=STRICT)).image_settings() == STRICT
    assert preprocess_arguments(custom_spec, ModelSettings()).image_settings() == DEFAULT_IMAGE_SETTINGS


def test_defaults_leave_the_configuration_as_it_is(custom_spec: ModelSpec) -> None:
    plain, strict = (
        render_files(custom_spec, settings=ModelSettings(images=each)) for each in (ImageSettings(), STRICT)
    )
    changed = {path for path in strict if strict[path] != plain.get(path)}
    assert changed == {f"{custom_spec.name}_preprocess/config.pbtxt"}
    assert "parameters" not in plain[f"{custom_spec.name}_preprocess/config.pbtxt"]
    assert len(TARGETS) > 1  # which all take that file


@pytest.mark.parametrize(
    ("parameter", "words"),
    [
        ({"string_value": '{"max_side": 0}'}, "max_side: expected a whole number"),
        ({"string_value": "many"}, "expected a JSON object"),
        ({"string_value": '{"max_sides": 1}'}, "unknown key max_sides"),
        ("{}", "expected an object"),
    ],
)
def test_a_wrong_parameter_is_refused_when_the_model_is_loaded(parameter: object, words: str) -> None:
    arguments = StepArguments("animals_preprocess", Path("1"), {"parameters": {"images": parameter}})
    with pytest.raises(RepositoryError) as raised:
        arguments.image_settings()
    assert "animals_preprocess: the parameter images is wrong: " in str(raised.value)
    assert words in str(raised.value)
    assert "Run: mlcls repository." in str(raised.value)
