"""What the Triton backends do with a request: a bad image costs that image alone."""

from __future__ import annotations

import json
import weakref
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from mlcls.backends import steps
from mlcls.backends.steps import OpenedImages, postprocess_logits, preprocess_images, request_thresholds
from mlcls.errors import ImageError, ThresholdError
from mlcls.images.cost import REQUEST_WORK_S, estimate_cost
from mlcls.images.encoded_image import EncodedImage, open_image
from mlcls.images.settings import ImageSettings
from mlcls.images.transforms import preprocess
from mlcls.model.contract import NO_SCORE
from mlcls.model.postprocess import apply_sigmoid
from mlcls.model.spec import ModelSpec
from support.image_samples import encode, make_png

NOISE: npt.NDArray[np.uint8] = np.random.default_rng(3).integers(1, 256, (96, 64, 3), dtype=np.uint8)

# Encoded without loss at the size of `custom_spec`, so that its pixels are known.
GOOD = encode(NOISE, "PNG")
OTHER = encode(255 - NOISE, "PNG")
LARGE = encode(Image.fromarray(NOISE).resize((200, 150)), "JPEG")


def as_tensor(*images: bytes) -> npt.NDArray[np.object_]:
    """BYTES as Triton gives them."""
    return np.array(images, dtype=np.object_)


@pytest.fixture
def thresholds(custom_spec: ModelSpec) -> npt.NDArray[np.float32]:
    return request_thresholds("", custom_spec)


# --- preprocess_images


def test_good_images(custom_spec: ModelSpec) -> None:
    pixels, statuses = preprocess_images(as_tensor(GOOD, LARGE, OTHER), custom_spec)  # type: ignore[arg-type]
    assert pixels.shape == (3, 96, 64, 3)
    assert pixels.dtype == np.uint8
    assert statuses == ["OK"] * 3
    np.testing.assert_array_equal(pixels, np.stack([NOISE, preprocess(LARGE, custom_spec.transform), 255 - NOISE]))
    transform = msgspec.structs.replace(custom_spec.transform, height=30, width=50)
    pixels, _ = preprocess_images([LARGE], msgspec.structs.replace(custom_spec, transform=transform))
    assert pixels.shape == (1, 30, 50, 3), "not swapped"


@pytest.mark.parametrize("bad", [b"", b"no image", GOOD[:-20], b"\xff\xd8\xff"])
def test_bad_images_cost_themselves_alone(custom_spec: ModelSpec, bad: bytes) -> None:
    with pytest.raises(ImageError) as expected:
        preprocess(bad, custom_spec.transform)
    assert str(expected.value).startswith("image: expected ")
    for images in ([bad, GOOD, OTHER], [GOOD, bad, OTHER], [GOOD, OTHER, bad], [bad, bad, GOOD, bad]):
        pixels, statuses = preprocess_images(as_tensor(*images), custom_spec)  # type: ignore[arg-type]
        for image, picture, status in zip(images, pixels, statuses, strict=True):
            good = {GOOD: NOISE, OTHER: 255 - NOISE}.get(image)
            assert status == ("OK" if good is not None else str(expected.value))
            np.testing.assert_array_equal(picture, np.zeros_like(NOISE) if good is None else good)
    with pytest.raises(ImageError) as alone:
        preprocess_images([bad], custom_spec)
    with pytest.raises(ImageError) as first:
        preprocess_images([bad, b"", GOOD[:50]], custom_spec)
    assert alone.value.reason == first.value.reason == expected.value.reason
    assert str(alone.value) == str(expected.value)
    assert str(first.value) == f"none of the 3 images can be decoded; the first: {expected.value}"


def test_the_images_of_a_request_share_its_work(custom_spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """What would be too much is refused before a decoder is called; smaller images after it are not."""
    large = make_png(8000, 8000, b"")
    fitting = int(REQUEST_WORK_S / estimate_cost(open_image(large)).work_s)
    assert 4 < fitting < 12
    decoded: list[EncodedImage] = []

    def decode(image: EncodedImage, *_: object) -> npt.NDArray[np.uint8]:
        decoded.append(image)
        return NOISE

    monkeypatch.setattr(steps, "decode_checked", decode)
    opened = OpenedImages([large] * 31 + [GOOD])
    assert not decoded
    assert REQUEST_WORK_S / 2 < opened.work_s < REQUEST_WORK_S
    _, statuses = preprocess_images([large] * 31 + [GOOD], custom_spec)
    assert len(decoded) == fitting + 1
    assert statuses[:fitting] == ["OK"] * fitting
    assert statuses[-1] == "OK"
    assert len(set(statuses)) == 2
    assert statuses[fitting].startswith("image: expected at most 8 s of work to decode all images of one request, got ")
    assert statuses[fitting].endswith(" s; send it in another request.")


def test_an_image_alone_has_no_limit_but_its_own() -> None:
    huge = make_png(13_000, 13_000, b"")
    settings = ImageSettings(max_pixels=178_000_000, max_bytes=1 << 30)
    monster = huge[:-12] + b"\0\0\0\0teXt0000" * 60_000 + huge[-12:]
    assert OpenedImages([monster], settings).work_s > 2
    assert not OpenedImages([], settings).work_s


def test_an_image_is_not_kept_once_it_was_decoded(custom_spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's hold their pixels, and a request may have many."""
    decoded: list[weakref.ref[EncodedImage]] = []

    def decode(image: EncodedImage, *_: object) -> npt.NDArray[np.uint8]:
        decoded.append(weakref.ref(image))
        return NOISE

    monkeypatch.setattr(steps, "decode_checked", decode)
    done = OpenedImages([encode(NOISE, "AVIF")] * 2).preprocess(custom_spec)
    for count in (1, 2):
        next(done)
        assert [image() for image in decoded] == [None] * count


def test_each_image_is_a_step(custom_spec: ModelSpec) -> None:
    opened = OpenedImages([GOOD, b"", OTHER])
    done = opened.preprocess(custom_spec)
    refusals = []
    for _ in range(3):
        next(done)
        refusals.append([(index, reason) for index, _, reason in opened.refusals])
    assert refusals == [[], [(1, "empty")], [(1, "empty")]]
    with pytest.raises(StopIteration) as end:
        next(done)
    assert end.value.value[0].shape == (3, 96, 64, 3)


# --- request_thresholds


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ("", (0.5, 0.3, 0.75)),
        ("{}", (0.5, 0.3, 0.75)),
        ({"threshold": None}, (0.5, 0.3, 0.75)),
        ({"other": 0.1}, (0.5, 0.3, 0.75)),
        ({"threshold": 0.2}, (0.2, 0.2, 0.2)),
        ({"threshold": 0}, (0.0, 0.0, 0.0)),
        ({"threshold": 1}, (1.0, 1.0, 1.0)),
        ({"threshold": "0.2", "id": 1}, (0.2, 0.2, 0.2)),
        ({"threshold": "[0.1, 0.2, 1]"}, (0.1, 0.2, 1.0)),
        ({"threshold": '{"default": 0.4, "0": 0.1}'}, (0.1, 0.4, 0.4)),
        ({"threshold": '{"default": 0.4, "犬": 0.1}'}, (0.4, 0.1, 0.4)),
        ({"threshold": r'{"default": 0.4, "\u72ac": 0.1}'}, (0.4, 0.1, 0.4)),
    ],
)
def test_thresholds(custom_spec: ModelSpec, parameters: str | dict[str, object], expected: tuple[float, ...]) -> None:
    text = parameters if isinstance(parameters, str) else json.dumps(parameters)
    thresholds = request_thresholds(text, custom_spec)
    assert thresholds.dtype == np.float32
    np.testing.assert_array_equal(thresholds, np.array(expected, np.float32))


@pytest.mark.parametrize(
    "value", [True, "", "abc", "NaN", "true", "[0.5]", '{"cat": 0.5}', '{"default": 0.5, "cow": 1}']
)
def test_wrong_thresholds(custom_spec: ModelSpec, value: object) -> None:
    with pytest.raises(ThresholdError, match=r"^threshold: expected "):
        request_thresholds(json.dumps({"threshold": value}), custom_spec)


# --- postprocess_logits

LOGITS = np.array([[2.0, -3.0, 0.1], [-2.0, 3.0, 4.0], [-9.0, -9.0, -9.0]], np.float32)
RESULTS: list[dict[str, Any]] = [
    {"class_ids": [0], "scores": [0.8808], "label_names": ["cat"]},
    {"class_ids": [2, 1], "scores": [0.98201, 0.95257], "label_names": ['a "fox"', "犬"]},
    {"class_ids": [], "scores": [], "label_names": []},
]
BAD = 'image: expected "犬", got nothing.'
NAN_STATUS = "the engine gave scores that are not numbers; this is a fault of the server, not of the image"


@pytest.mark.parametrize("bad", [0, 1, 2, None])
@pytest.mark.parametrize(
    ("row", "status", "shown"),
    [
        ([0.0, 1.0, 2.0], BAD, BAD),
        ([np.nan, 0.0, 9.0], "OK", NAN_STATUS),
        ([np.nan] * 3, "OK", NAN_STATUS),
        ([np.nan] * 3, BAD, BAD),  # it keeps its status
    ],
)
def test_a_bad_row_has_no_scores_and_the_others_have_theirs(
    custom_spec: ModelSpec,
    thresholds: npt.NDArray[np.float32],
    bad: int | None,
    row: list[float],
    status: str,
    shown: str,
) -> None:
    logits, statuses, expected = LOGITS.copy(), ["OK"] * 3, list(RESULTS)
    expected_scores = apply_sigmoid(LOGITS)
    if bad is not None:
        logits[bad], statuses[bad], expected[bad], expected_scores[bad] = row, status, {"error": shown}, NO_SCORE
    before = logits.copy()
    scores, results, out = postprocess_logits(logits, statuses, thresholds, custom_spec)
    np.testing.assert_array_equal(logits, before)
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(scores, expected_scores)
    assert [json.loads(result) for result in results] == expected
    assert out == [shown if index == bad else "OK" for index in range(3)]


def test_results_are_readable_json(custom_spec: ModelSpec, thresholds: npt.NDArray[np.float32]) -> None:
    _, results, _ = postprocess_logits(LOGITS, ["OK"] * 3, thresholds, custom_spec)
    assert '"犬"' in results[1]
    assert r'"a \"fox\""' in results[1]


def test_request_thresholds_are_used(custom_spec: ModelSpec) -> None:
    thresholds = request_thresholds(json.dumps({"threshold": '{"default": 1, "cat": 0}'}), custom_spec)
    _, results, _ = postprocess_logits(LOGITS, ["OK"] * 3, thresholds, custom_spec)
    assert [json.loads(result)["label_names"] for result in results] == [["cat"]] * 3


def test_number_of_rows_must_fit(custom_spec: ModelSpec, thresholds: npt.NDArray[np.float32]) -> None:
    with pytest.raises(ValueError):
        postprocess_logits(LOGITS, ["OK"] * 2, thresholds, custom_spec)
