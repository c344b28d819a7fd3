"""`ModelSpec`: what it accepts, and that `model_spec.json` says all of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mlcls.base.documents import change
from mlcls.errors import SpecError
from mlcls.model import contract
from mlcls.model.catalog import OFFICIAL_MODELS, official_spec
from mlcls.model.contract import TENSORS
from mlcls.model.spec import MAX_LABEL_CHARACTERS, ModelSpec
from mlcls_client.transport import contract as of_client
from support.edited_documents import edit_document

SPEC = official_spec("ResNet50_ML")


# --- there and back


def test_json_round_trip(custom_spec: ModelSpec) -> None:
    for spec in (custom_spec, *map(official_spec, OFFICIAL_MODELS)):
        assert ModelSpec.from_json(spec.to_json()) == spec


def test_the_file_has_every_key_in_order_and_readable_labels(custom_spec: ModelSpec, tmp_path: Path) -> None:
    path = tmp_path / "model_spec.json"
    path.write_text(custom_spec.to_json(), encoding="utf-8")
    assert ModelSpec.read(path) == custom_spec
    document = json.loads(custom_spec.to_json())
    assert custom_spec.to_json() == json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    transform = {key: getattr(custom_spec.transform, key) for key in document["transform"]}
    assert json.dumps(document) == json.dumps(
        {
            "schema_version": 1,
            "name": "animals-v2",
            "architecture": "PP-LCNet_x1_0_ML",
            "labels": ["cat", "犬", 'a "fox"'],
            "thresholds": [0.5, 0.3, 0.75],
            "transform": transform,
            "activation": "sigmoid",
            "source_activation": "sigmoid",
            "tensors": {name: name for name in TENSORS.__struct_fields__},
            "source_sha256": custom_spec.source_sha256,
            "onnx_sha256": "4" * 64,
        }
    )


def test_numbers_are_floats_and_lists_are_tuples() -> None:
    transform = change(SPEC.transform, SpecError, scale=1, mean=[0, 0, 0])
    assert (transform.scale, transform.mean) == (1.0, (0.0, 0.0, 0.0))
    assert {type(number) for number in (transform.scale, *transform.mean)} == {float}
    spec = change(SPEC, SpecError, labels=["a", "b"], thresholds=[0, 1])
    assert (spec.labels, spec.thresholds, spec.num_labels) == (("a", "b"), (0.0, 1.0), 2)


# --- what is refused


REQUIRED = ["schema_version", "name", "architecture", "labels", "thresholds", "transform"]


@pytest.mark.parametrize("key", [*REQUIRED[1:], *(f"transform.{key}" for key in SPEC.transform.__struct_fields__)])
def test_missing_key(key: str) -> None:
    with pytest.raises(SpecError, match=rf"^model_spec\.json: missing key {key}; expected .*; import the model again"):
        ModelSpec.from_json(edit_document(SPEC.to_json(), key, ...))


@pytest.mark.parametrize("key", ["label", "transform.heigth", "tensors.input", "tensors."])
def test_unknown_key(key: str) -> None:
    with pytest.raises(SpecError, match=rf"^model_spec\.json: unknown key {key}; expected only "):
        ModelSpec.from_json(edit_document(SPEC.to_json(), key, 1))


WRONG_VALUES: dict[str, list[object]] = {
    "schema_version": [..., 0, 2, "1", None, True, [1]],
    "name": [None, 1, "", "a/b", "..", ".a", "-a", "_a", "a b", "a\n", "é", "x" * 129, "a\\b", ["a"]],
    "architecture": [None, 1, "", ["a"]],
    "labels": [None, 1, "ab", {"a": 0}, [], [1], [None], [""], [" "], ["x" * (MAX_LABEL_CHARACTERS + 1)]],
    "thresholds": [
        None, 0.5, [], ["0.5"] * 80, [None] * 80, [True] * 80, [10**400] * 80, [0.5] * 79, [0.5] * 81,
        [0.5] * 79 + [90], [-0.1] * 80
    ],
    "transform": [None, 1, "", []],
    "transform.height": [None, "448", 448.0, 0, -1, 8193, True, [448]],
    "transform.width": [None, "448", 448.0, 0, -1, 8193, True, [448]],
    "transform.resize_backend": [None, 1, "", "PIL", "opencv", ["pil"], {}],
    "transform.interpolation": [None, 1, "", "bilinear", "LINEAR", ["BILINEAR"]],
    "transform.scale": [None, "1/255", True, 10**400, [1]],
    "transform.mean": [None, 0.5, "abc", [0.5], [0.5] * 4, [0.5, 0.5, None], {"0": 1}],
    "transform.std": [None, 0.5, "abc", [0.5], [0.5] * 4, [0.5, 0.5, "0.5"], [0.5, 0.0, 0.5], [0.5, -0.0, 0.5]],
    "activation": [None, 1, "none", "softmax", "Sigmoid", ["sigmoid"]],
    "source_activation": [1, "softmax", "Sigmoid", False, ["sigmoid"]],
    "tensors": [None, 1, "", []],
    "tensors.image": [None, 1, "", "picture", ["image"]],
    "tensors.logits": ["pixels", "scores"],
    "source_sha256": [None, ["1"], {"inference.json": 1}, {"inference.json": "1" * 63}],
    "onnx_sha256": [1, "A" * 64, "1" * 64 + "\n"],
}  # fmt: skip


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG_VALUES.items() for value in values])
def test_wrong_value(key: str, value: object) -> None:
    with pytest.raises(SpecError) as caught:
        ModelSpec.from_json(edit_document(SPEC.to_json(), key, value))
    text = str(caught.value)
    assert text.startswith(f"model_spec.json: {key}")
    assert ": expected " in text
    assert text.endswith("; import the model again: mlcls import MODEL.")
    assert len(text.splitlines()) == 1
    assert len(text) < 400


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_numbers_are_finite(number: float) -> None:
    with pytest.raises(SpecError, match=r"^thresholds\[79\]: expected a finite number, got "):
        change(SPEC, SpecError, thresholds=[0.5] * 79 + [number])
    for key in ("scale", "mean", "std"):
        with pytest.raises(SpecError, match=rf"^{key}.*: expected a finite number, got "):
            change(SPEC.transform, SpecError, **{key: number if key == "scale" else [1, 2, number]})


def test_a_file_that_does_not_exist(tmp_path: Path) -> None:
    path = tmp_path / "model_spec.json"
    with pytest.raises(SpecError, match=rf"^{path} does not exist; import the model again: mlcls import MODEL\.$"):
        ModelSpec.read(path)


# --- names, labels, the transform


def test_names_and_sizes_that_are_accepted() -> None:
    for name in ("a", "1", "A.b_c-d", "x" * 128):
        assert change(SPEC, SpecError, name=name).name == name
    for side in (1, 8192):
        transform = change(SPEC.transform, SpecError, height=side, width=side)
        assert (transform.height, transform.width) == (side, side)


@pytest.mark.parametrize("labels", [("a",), ("no", "1", "null"), ("人", "犬", "😀"), ("a b", "a, b", 'a"b', "it's")])
def test_labels(labels: tuple[str, ...]) -> None:
    spec = msgspec.structs.replace(SPEC, labels=labels, thresholds=(0.5,) * len(labels))
    assert ModelSpec.from_json(spec.to_json()).labels == labels


@pytest.mark.parametrize("label", ["a\nb", "a\r", "\ta", "a\0", "a\x1f", "a\x7f", "a\x85b", "a\x9b", " ", "fine"])
def test_label_that_is_refused(label: str) -> None:
    """Triton reads `labels.txt` line by line; and no label comes twice."""
    with pytest.raises(SpecError, match=r"^labels: expected different labels, none empty, without control ") as caught:
        change(SPEC, SpecError, labels=["fine", label], thresholds=[0.5, 0.5])
    assert str(caught.value).endswith(", got 'fine' twice." if label == "fine" else f", got {label!a}.")


@pytest.mark.parametrize(
    ("backend", "filters", "others"),
    [
        ("pil", ["NEAREST", "BILINEAR", "BICUBIC", "BOX", "LANCZOS4"], ["LINEAR", "AREA", "bilinear"]),
        ("cv2", ["NEAREST", "LINEAR", "BICUBIC", "AREA", "LANCZOS4"], ["BILINEAR", "BOX", "CUBIC"]),
    ],
)
def test_interpolation_of_backend(backend: Any, filters: list[str], others: list[str]) -> None:
    """What PaddleX resizes with."""
    for interpolation in filters:
        change(SPEC.transform, SpecError, resize_backend=backend, interpolation=interpolation)
    for interpolation in others:
        text = f"expected one of {', '.join(filters)} for the resize backend {backend!r}, got {interpolation!r}"
        with pytest.raises(SpecError, match=f"^interpolation: {text}"):
            change(SPEC.transform, SpecError, resize_backend=backend, interpolation=interpolation)


def test_the_client_has_the_same_contract() -> None:
    assert (TENSORS.image, TENSORS.result, TENSORS.status) == (of_client.IMAGE, of_client.RESULT, of_client.STATUS)
    assert (of_client.THRESHOLD_PARAMETER, of_client.STATUS_OK) == (contract.THRESHOLD_PARAMETER, contract.OK)
