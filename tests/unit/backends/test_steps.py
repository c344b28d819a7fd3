"""What the Triton backends do with a request: a bad image costs that image alone."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from mlcls.backends.steps import parse_parameters, postprocess_logits, preprocess_images, request_thresholds
from mlcls.errors import ImageError, ThresholdError
from mlcls.images.transforms import preprocess
from mlcls.model.postprocess import apply_sigmoid
from mlcls.model.spec import ModelSpec
from support.image_samples import encode

NOISE: npt.NDArray[np.uint8] = np.random.default_rng(3).integers(1, 256, (96, 64, 3), dtype=np.uint8)

# Encoded without loss at the size of `custom_spec`, so that its pixels are known.
GOOD = encode(NOISE, "PNG")
OTHER = encode(255 - NOISE, "PNG")
LARGE = encode(Image.fromarray(NOISE).resize((200, 150)), "JPEG")


def as_tensor(*images: bytes) -> npt.NDArray[np.object_]:
    """BYTES as Triton gives them."""
    return np.array(images, dtype=np.object_)


# --- preprocess_images


def test_good_images(custom_spec: ModelSpec) -> None:
    pixels, statuses = preprocess_images(as_tensor(GOOD, LARGE, OTHER), custom_spec)  # type: ignore[arg-type]
    assert pixels.shape == (3, 96, 64, 3)
    assert pixels.dtype == np.uint8
    assert statuses == ["OK"] * 3
    np.testing.assert_array_equal(pixels[0], NOISE)
    np.testing.assert_array_equal(pixels[1], preprocess(LARGE, custom_spec.transform))
    np.testing.assert_array_equal(pixels[2], 255 - NOISE)


@pytest.mark.parametrize("bad", [b"", b"no image", GOOD[:-20], b"\xff\xd8\xff"])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_one_bad_image(custom_spec: ModelSpec, at: int, bad: bytes) -> None:
    images = [GOOD, OTHER]
    images.insert(at, bad)
    pixels, statuses = preprocess_images(as_tensor(*images), custom_spec)  # type: ignore[arg-type]
    with pytest.raises(ImageError) as caught:
        preprocess(bad, custom_spec.transform)
    assert statuses.pop(at) == str(caught.value)
    assert statuses == ["OK", "OK"]
    assert not pixels[at].any()
    good, other = (pixels[index] for index in range(3) if index != at)
    np.testing.assert_array_equal(good, NOISE)
    np.testing.assert_array_equal(other, 255 - NOISE)


def test_one_good_image(custom_spec: ModelSpec) -> None:
    pixels, statuses = preprocess_images([b"", b"x", GOOD, b""], custom_spec)
    assert [status == "OK" for status in statuses] == [False, False, True, False]
    np.testing.assert_array_equal(pixels[2], NOISE)
    assert not pixels[[0, 1, 3]].any()


@pytest.mark.parametrize("images", [[b""], [b"no image"], [GOOD[:50]]])
def test_bad_image_alone(custom_spec: ModelSpec, images: list[bytes]) -> None:
    with pytest.raises(ImageError) as expected:
        preprocess(images[0], custom_spec.transform)
    with pytest.raises(ImageError) as caught:
        preprocess_images(as_tensor(*images), custom_spec)  # type: ignore[arg-type]
    assert str(caught.value) == str(expected.value)
    assert str(caught.value).startswith("image: expected ")


def test_all_images_bad(custom_spec: ModelSpec) -> None:
    with pytest.raises(ImageError) as expected:
        preprocess(b"no image", custom_spec.transform)
    with pytest.raises(ImageError) as caught:
        preprocess_images(as_tensor(b"no image", b"", GOOD[:50]), custom_spec)  # type: ignore[arg-type]
    assert str(caught.value) == f"none of the 3 images can be decoded; the first: {expected.value}"


def test_empty_bytes(custom_spec: ModelSpec) -> None:
    with pytest.raises(ImageError, match="got 0 bytes"):
        preprocess_images(np.array([b""], dtype=object), custom_spec)  # type: ignore[arg-type]


def test_sizes_are_not_swapped(custom_spec: ModelSpec) -> None:
    transform = msgspec.structs.replace(custom_spec.transform, height=30, width=50)
    pixels, _ = preprocess_images([LARGE], msgspec.structs.replace(custom_spec, transform=transform))
    assert pixels.shape == (1, 30, 50, 3)


# --- parameters


@pytest.mark.parametrize(
    ("text", "parameters"),
    [("", {}), ("{}", {}), ('{"threshold": "0.3", "id": 1}', {"threshold": "0.3", "id": 1})],
)
def test_parameters(text: str, parameters: dict[str, object]) -> None:
    assert parse_parameters(text) == parameters


@pytest.mark.parametrize("text", ["[]", "1", "null"])
def test_wrong_parameters(text: str) -> None:
    with pytest.raises(ThresholdError, match=r"^Expected request parameters by name, got "):
        parse_parameters(text)


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, (0.5, 0.3, 0.75)),
        ({"threshold": None}, (0.5, 0.3, 0.75)),
        ({"other": 0.1}, (0.5, 0.3, 0.75)),
        ({"threshold": 0.2}, (0.2, 0.2, 0.2)),
        ({"threshold": 0}, (0.0, 0.0, 0.0)),
        ({"threshold": 1}, (1.0, 1.0, 1.0)),
        ({"threshold": "0.2"}, (0.2, 0.2, 0.2)),
        ({"threshold": "[0.1, 0.2, 1]"}, (0.1, 0.2, 1.0)),
        ({"threshold": '{"default": 0.4, "0": 0.1}'}, (0.1, 0.4, 0.4)),
        ({"threshold": '{"default": 0.4, "犬": 0.1}'}, (0.4, 0.1, 0.4)),
        ({"threshold": r'{"default": 0.4, "\u72ac": 0.1}'}, (0.4, 0.1, 0.4)),
    ],
)
def test_thresholds(custom_spec: ModelSpec, parameters: dict[str, object], expected: tuple[float, ...]) -> None:
    thresholds = request_thresholds(parameters, custom_spec)
    assert thresholds.dtype == np.float32
    np.testing.assert_array_equal(thresholds, np.array(expected, np.float32))


@pytest.mark.parametrize(
    "value", [True, "", "abc", "NaN", "true", "[0.5]", '{"cat": 0.5}', '{"default": 0.5, "cow": 1}']
)
def test_wrong_thresholds(custom_spec: ModelSpec, value: object) -> None:
    with pytest.raises(ThresholdError, match=r"^threshold: expected "):
        request_thresholds({"threshold": value}, custom_spec)


# --- postprocess_logits

LOGITS = np.array([[2.0, -3.0, 0.1], [-2.0, 3.0, 4.0], [-9.0, -9.0, -9.0]], np.float32)


def run_postprocess(
    spec: ModelSpec, logits: npt.NDArray[np.float32], *statuses: str
) -> tuple[npt.NDArray[np.float32], list[dict[str, Any]], list[str]]:
    before = logits.copy()
    scores, results, out = postprocess_logits(logits, statuses, request_thresholds({}, spec), spec)
    np.testing.assert_array_equal(logits, before)
    assert scores.dtype == np.float32
    return scores, [json.loads(result) for result in results], out


def test_results(custom_spec: ModelSpec) -> None:
    scores, results, statuses = run_postprocess(custom_spec, LOGITS, "OK", "OK", "OK")
    np.testing.assert_array_equal(scores, apply_sigmoid(LOGITS))
    assert results == [
        {"class_ids": [0], "scores": [0.8808], "label_names": ["cat"]},
        {"class_ids": [2, 1], "scores": [0.98201, 0.95257], "label_names": ['a "fox"', "犬"]},
        {"class_ids": [], "scores": [], "label_names": []},
    ]
    assert statuses == ["OK", "OK", "OK"]


def test_results_are_readable_json(custom_spec: ModelSpec) -> None:
    _, results, _ = postprocess_logits(LOGITS, ["OK"] * 3, request_thresholds({}, custom_spec), custom_spec)
    assert '"犬"' in results[1]
    assert r'"a \"fox\""' in results[1]


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_bad_image_has_no_scores(custom_spec: ModelSpec, bad: int) -> None:
    statuses = ["OK"] * 3
    statuses[bad] = 'image: expected "犬", got nothing.'
    good = [row for row in range(3) if row != bad]
    expected_scores, expected_results, _ = run_postprocess(custom_spec, LOGITS, "OK", "OK", "OK")
    scores, results, out = run_postprocess(custom_spec, LOGITS, *statuses)
    assert np.isnan(scores[bad]).all()
    assert results[bad] == {"error": statuses[bad]}
    assert out == statuses
    np.testing.assert_array_equal(scores[good], expected_scores[good])
    assert [results[row] for row in good] == [expected_results[row] for row in good]


@pytest.mark.parametrize("bad", [[np.nan, 0.0, 9.0], [np.nan] * 3])
def test_engine_gives_nan(custom_spec: ModelSpec, bad: list[float]) -> None:
    logits = np.stack([LOGITS[0], np.array(bad, np.float32), LOGITS[1]])
    scores, results, statuses = run_postprocess(custom_spec, logits, "OK", "OK", "OK")
    assert statuses[0] == statuses[2] == "OK"
    assert statuses[1].startswith("the engine gave scores that are not numbers")
    assert results[1] == {"error": statuses[1]}
    assert np.isnan(scores[1]).all()
    np.testing.assert_array_equal(scores[[0, 2]], apply_sigmoid(LOGITS[:2]))
    assert results[0]["class_ids"] == [0]


def test_bad_image_keeps_its_status_when_engine_gives_nan(custom_spec: ModelSpec) -> None:
    logits = np.full((1, 3), np.nan, np.float32)
    _, results, statuses = run_postprocess(custom_spec, logits, "image: expected more.")
    assert statuses == ["image: expected more."]
    assert results == [{"error": "image: expected more."}]


def test_request_thresholds_are_used(custom_spec: ModelSpec) -> None:
    thresholds = request_thresholds({"threshold": '{"default": 1, "cat": 0}'}, custom_spec)
    _, results, _ = postprocess_logits(LOGITS, ["OK"] * 3, thresholds, custom_spec)
    assert [json.loads(result)["label_names"] for result in results] == [["cat"]] * 3


def test_number_of_rows_must_fit(custom_spec: ModelSpec) -> None:
    with pytest.raises(ValueError):
        postprocess_logits(LOGITS, ["OK"] * 2, request_thresholds({}, custom_spec), custom_spec)


def test_a_request_without_a_good_image_has_the_reason_of_the_first(custom_spec: ModelSpec) -> None:
    with pytest.raises(ImageError) as caught:
        preprocess_images([b"no image", b""], custom_spec)
    assert caught.value.reason == "unknown_format"
