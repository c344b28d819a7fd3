"""`ModelSpec`: what it accepts, and that `model_spec.json` says all of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlcls.errors import SpecError
from mlcls.model.catalog import OFFICIAL_MODELS, official_spec
from mlcls.model.contract import TENSORS
from mlcls.model.spec import ImageTransform, ModelSpec

SPEC = official_spec("ResNet50_ML")

# What PaddleX resizes with, per backend.
FILTERS = {
    "pil": {"NEAREST", "BILINEAR", "BICUBIC", "BOX", "LANCZOS4"},
    "cv2": {"NEAREST", "LINEAR", "BICUBIC", "AREA", "LANCZOS4"},
}


def make_document() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(SPEC.to_json())
    return document


def list_keys(document: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in document.items():
        yield prefix + key
        if key in ("transform", "tensors"):
            yield from list_keys(value, f"{key}.")


KEYS = [key for key in list_keys(make_document()) if key != "schema_version"]


def changed(key: str, value: object) -> str:
    """The JSON text with another value at a key like `transform.height`."""
    document = make_document()
    *parents, last = key.split(".")
    target = document
    for parent in parents:
        target = target[parent]
    target[last] = value
    return json.dumps(document)


def make_transform(**changes: Any) -> ImageTransform:
    return dataclasses.replace(SPEC.transform, **changes)


def test_keys_are_complete() -> None:
    """The parametrized tests below see every field there is."""
    fields = [field.name for field in dataclasses.fields(ModelSpec)]
    fields += [f"transform.{field.name}" for field in dataclasses.fields(ImageTransform)]
    fields += ["activation", "tensors", *(f"tensors.{field}" for field in TENSORS._fields)]
    assert sorted(KEYS) == sorted(fields)


# --- there and back


def test_json_round_trip(custom_spec: ModelSpec) -> None:
    for spec in (custom_spec, *map(official_spec, OFFICIAL_MODELS)):
        again = ModelSpec.from_json(spec.to_json())
        assert again == spec
        assert again.to_json() == spec.to_json()


def test_round_trip_keeps_every_field(custom_spec: ModelSpec) -> None:
    """No field has its default here, so that one that is not written cannot come back by itself."""
    again = ModelSpec.from_json(custom_spec.to_json())
    for field in dataclasses.fields(ModelSpec):
        if field.default is not dataclasses.MISSING:
            assert getattr(custom_spec, field.name) != field.default
        assert getattr(again, field.name) == getattr(custom_spec, field.name), field.name


def test_json_is_readable_text(custom_spec: ModelSpec) -> None:
    text = custom_spec.to_json()
    assert text.endswith("}\n")
    assert "犬" in text
    assert json.loads(text)["schema_version"] == 1


def test_read_from_file(tmp_path: Path, custom_spec: ModelSpec) -> None:
    path = tmp_path / "model_spec.json"
    path.write_text(custom_spec.to_json(), encoding="utf-8")
    assert ModelSpec.read(path) == custom_spec


def test_lists_become_tuples_and_ints_floats() -> None:
    transform = make_transform(scale=1, mean=[0, 0, 0], std=[1, 2, 3])
    assert transform.mean == (0.0, 0.0, 0.0)
    assert isinstance(transform.mean, tuple)
    assert {type(number) for number in (transform.scale, *transform.mean, *transform.std)} == {float}
    spec = dataclasses.replace(SPEC, labels=["a", "b"], thresholds=[0, 1])  # type: ignore[arg-type]
    assert (spec.labels, spec.thresholds) == (("a", "b"), (0.0, 1.0))
    assert {type(threshold) for threshold in spec.thresholds} == {float}


def test_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SPEC.name = "other"  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        SPEC.transform.height = 1  # type: ignore[misc]


def test_num_labels(custom_spec: ModelSpec) -> None:
    assert (SPEC.num_labels, custom_spec.num_labels) == (80, 3)


# --- keys


@pytest.mark.parametrize("key", KEYS)
def test_missing_key(key: str) -> None:
    document = make_document()
    *parents, last = key.split(".")
    target = document
    for parent in parents:
        target = target[parent]
    del target[last]
    with pytest.raises(SpecError, match=rf"^model_spec\.json: missing key {key}; "):
        ModelSpec.from_json(json.dumps(document))


@pytest.mark.parametrize("key", ["label", "transform.heigth", "transform.resize_short", "tensors.input", "tensors."])
def test_unknown_key(key: str) -> None:
    with pytest.raises(SpecError, match=rf"^model_spec\.json: unknown key {key}; "):
        ModelSpec.from_json(changed(key, 1))


WRONG_VALUES: dict[str, list[object]] = {
    "name": [None, 1, "", "a/b", ["a"]],
    "architecture": [None, 1, "", ["a"]],
    "labels": [[], [1], [None], [""]],
    "thresholds": [[], ["0.5"] * 80, [None] * 80, [True] * 80, [float("nan")] * 80, [float("inf")] * 80, [0.5] * 79],
    "transform": [None, 1, "", []],
    "transform.height": [None, "448", 448.0, 0, -1, 8193, True, [448]],
    "transform.width": [None, "448", 448.0, 0, -1, 8193, True, [448]],
    "transform.resize_backend": [None, 1, "", "PIL", "opencv"],
    "transform.interpolation": [None, 1, "", "bilinear", "LINEAR", ["BILINEAR"]],
    "transform.scale": [None, "1/255", True, float("nan"), float("-inf"), [1]],
    "transform.mean": [None, 0.5, "abc", [0.5], [0.5] * 4, [0.5, 0.5, None], [0.5, 0.5, float("nan")], {"0": 1}],
    "transform.std": [None, 0.5, "abc", [0.5], [0.5] * 4, [0.5, 0.5, "0.5"], [0.5, 0.0, 0.5], [0.5, -0.0, 0.5]],
    "activation": [None, 1, "none", "softmax", "Sigmoid", ["sigmoid"]],
    "source_activation": [1, "softmax", "Sigmoid", False, ["sigmoid"]],
    "tensors": [None, 1, "", []],
    "tensors.image": [None, 1, "", "picture", ["image"]],
    "tensors.logits": ["pixels", "scores"],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG_VALUES.items() for value in values])
def test_wrong_value(key: str, value: object) -> None:
    with pytest.raises(SpecError) as caught:
        ModelSpec.from_json(changed(key, value))
    text = str(caught.value)
    assert text.startswith(f"model_spec.json: {key}: expected ")
    assert "\n" not in text


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("labels", None),
        ("labels", 1),
        ("thresholds", None),
        ("thresholds", 0.5),
        ("transform.resize_backend", ["pil"]),
        ("transform.resize_backend", {}),
        ("transform.scale", 10**400),
        ("source_sha256", None),
        ("source_sha256", ["1"]),
        ("source_sha256", {"inference.json": 1}),
        ("onnx_sha256", 1),
        ("tensors.image", None),
        ("tensors.logits", 1),
        ("tensors.status", ""),
    ],
    ids=lambda value: str(value)[:20],
)
def test_wrong_value_that_is_not_noticed(key: str, value: object) -> None:
    with pytest.raises(SpecError, match=f"{key.split('.')[-1]}: expected "):
        ModelSpec.from_json(changed(key, value))


@pytest.mark.parametrize("labels", ["ab", {"a": 0, "b": 1}])
def test_labels_are_a_list(labels: object) -> None:
    document = make_document() | {"labels": labels, "thresholds": [0.5, 0.5]}
    with pytest.raises(SpecError, match="labels: expected "):
        ModelSpec.from_json(json.dumps(document))


def test_other_tensors_and_activations_are_refused() -> None:
    for field in TENSORS._fields:
        with pytest.raises(SpecError) as caught:
            ModelSpec.from_json(changed(f"tensors.{field}", "other"))
        expected = f"tensors.{field}: expected '{field}', as in every served model, got 'other'; import the model"
        assert str(caught.value) == f"model_spec.json: {expected} again."


def test_the_client_has_the_same_contract() -> None:
    from mlcls.model import contract
    from mlcls_client.transport import contract as of_client

    assert (TENSORS.image, TENSORS.result, TENSORS.status) == (of_client.IMAGE, of_client.RESULT, of_client.STATUS)
    assert (of_client.THRESHOLD_PARAMETER, of_client.STATUS_OK) == (contract.THRESHOLD_PARAMETER, contract.OK)


# --- the document


@pytest.mark.parametrize("version", [0, 2, "1", None, [1]])
def test_schema_version(version: object) -> None:
    with pytest.raises(SpecError, match=r"schema_version: expected 1, got .*; import the model again"):
        ModelSpec.from_json(changed("schema_version", version))


def test_no_schema_version() -> None:
    document = make_document()
    del document["schema_version"]
    with pytest.raises(SpecError, match="schema_version: expected 1, got None"):
        ModelSpec.from_json(json.dumps(document))


@pytest.mark.parametrize("text", ["", "{", "name: ResNet50_ML", "{'a': 1}", '{"a": 1} {}'])
def test_not_json(text: str) -> None:
    with pytest.raises(SpecError, match=r"^here: expected a JSON document, got invalid JSON"):
        ModelSpec.from_json(text, "here")


@pytest.mark.parametrize(("text", "kind"), [("[]", "list"), ("1", "int"), ('"a"', "str"), ("null", "NoneType")])
def test_not_an_object(text: str, kind: str) -> None:
    with pytest.raises(SpecError, match=f"^here: expected a JSON object, got {kind}"):
        ModelSpec.from_json(text, "here")


def test_json_that_is_nested_too_deeply() -> None:
    with pytest.raises(SpecError, match="expected a JSON document"):
        ModelSpec.from_json("[" * 100_000)


def test_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "model_spec.json"
    with pytest.raises(SpecError) as caught:
        ModelSpec.read(path)
    assert str(caught.value) == f"{path} does not exist; import the model first: mlcls import MODEL."


def test_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot be read: "):
        ModelSpec.read(tmp_path)
    path = tmp_path / "model_spec.json"
    path.write_bytes(b'{"name": "\xff"}')
    with pytest.raises(SpecError, match="cannot be read: "):
        ModelSpec.read(path)
    path.write_text("{")
    with pytest.raises(SpecError, match=f"^{path}: expected a JSON document"):
        ModelSpec.read(path)


# --- names, labels, thresholds


@pytest.mark.parametrize("name", [*OFFICIAL_MODELS, "a", "1", "A.b_c-d", "x" * 128])
def test_name(name: str) -> None:
    assert dataclasses.replace(SPEC, name=name).name == name


@pytest.mark.parametrize("name", ["", "a/b", "..", "../a", ".a", "-a", "_a", "a b", "a\n", "é", "x" * 129, "a\\b"])
def test_name_that_is_no_folder(name: str) -> None:
    with pytest.raises(SpecError, match=r"^name: expected 1 to 128 letters"):
        dataclasses.replace(SPEC, name=name)


def with_labels(*labels: Any) -> ModelSpec:
    return dataclasses.replace(SPEC, labels=labels, thresholds=(0.5,) * len(labels))


@pytest.mark.parametrize("labels", [("a",), ("no", "1", "null"), ("人", "犬", "😀"), ("a b", "a, b", 'a"b', "it's")])
def test_labels(labels: tuple[str, ...]) -> None:
    spec = with_labels(*labels)
    assert spec.labels == labels
    assert ModelSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize("labels", [(), ("a", ""), ("a", "  "), ("a", 1), ("a", None), ("a", b"b")])
def test_empty_label(labels: tuple[Any, ...]) -> None:
    with pytest.raises(SpecError, match=r"^labels: expected at least one label, none of them empty"):
        with_labels(*labels)


@pytest.mark.parametrize("label", ["a\nb", "a\r", "\ta", "a\0", "a\x1f", "a\x7f"])
def test_label_with_control_character(label: str) -> None:
    """Triton reads `labels.txt` line by line."""
    with pytest.raises(SpecError) as caught:
        with_labels("fine", label)
    assert str(caught.value) == (f"labels: expected labels without control characters or line breaks, got {label!r}.")


@pytest.mark.parametrize("label", ["a\x85b", "a\x9b"])
def test_label_with_other_control_character(label: str) -> None:
    with pytest.raises(SpecError, match=r"^labels: expected labels without control characters"):
        with_labels(label)


def test_label_twice() -> None:
    with pytest.raises(SpecError, match=r"^labels: expected each label once, got several of 'b', 'c'\.$"):
        with_labels("c", "b", "a", "b", "c", "b")


@pytest.mark.parametrize("count", [0, 1, 79, 81])
def test_number_of_thresholds(count: int) -> None:
    with pytest.raises(SpecError, match=f"^thresholds: expected one for each of the 80 labels, got {count}"):
        dataclasses.replace(SPEC, thresholds=(0.5,) * count)


# --- the transform


@pytest.mark.parametrize("side", [1, 8192])
@pytest.mark.parametrize("field", ["height", "width"])
def test_size(field: str, side: int) -> None:
    assert getattr(make_transform(**{field: side}), field) == side


@pytest.mark.parametrize("side", [0, -448, 8193, 448.0, "448", True, None])
@pytest.mark.parametrize("field", ["height", "width"])
def test_wrong_size(field: str, side: object) -> None:
    with pytest.raises(SpecError, match=f"^transform.{field}: expected an integer from 1 to 8192, got {side!r}"):
        make_transform(**{field: side})


@pytest.mark.parametrize("interpolation", sorted({*FILTERS["pil"], *FILTERS["cv2"], "CUBIC", "bilinear", "HAMMING"}))
@pytest.mark.parametrize("backend", FILTERS)
def test_interpolation_of_backend(backend: str, interpolation: str) -> None:
    if interpolation in FILTERS[backend]:
        transform = make_transform(resize_backend=backend, interpolation=interpolation)
        assert (transform.resize_backend, transform.interpolation) == (backend, interpolation)
        return
    with pytest.raises(SpecError, match=r"^transform.interpolation: expected one of ") as caught:
        make_transform(resize_backend=backend, interpolation=interpolation)
    assert set(str(caught.value).split(" of ")[1].split(" for ")[0].split(", ")) == FILTERS[backend]
    assert f"{backend!r}, got {interpolation!r}" in str(caught.value)
