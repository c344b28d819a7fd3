"""Sigmoid, thresholds and labels, against scipy and against PaddleX's rule written down once more."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.special import expit  # type: ignore[import-untyped]

from mlcls.errors import ThresholdError
from mlcls.model.postprocess import apply_sigmoid, parse_thresholds, resolve_thresholds, select_labels

LABELS = ("person", "bicycle", "car", "cat", "dog")


def floats(*values: float) -> npt.NDArray[np.float32]:
    return np.array(values, np.float32)


# --- the sigmoid


def test_sigmoid_against_scipy() -> None:
    logits = np.concatenate(
        [np.linspace(-110, 110, 20_001), np.random.default_rng(1).normal(0, 4, 20_000), [0.0, -0.0, 1e-30, -1e-30]]
    ).astype(np.float32)
    scores = apply_sigmoid(logits)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expit(logits.astype(np.float64)), rtol=4e-7, atol=2e-45)


@pytest.mark.parametrize(
    ("logit", "score"),
    [(0.0, 0.5), (-0.0, 0.5), (89.0, 1.0), (3e38, 1.0), (math.inf, 1.0), (-3e38, 0.0), (-math.inf, 0.0)],
)
def test_sigmoid_of_extremes(logit: float, score: float) -> None:
    with np.errstate(over="raise", divide="raise", invalid="raise"):
        got = apply_sigmoid(floats(logit))
    np.testing.assert_allclose(got, [score], atol=1e-7)


def test_sigmoid_of_nan() -> None:
    scores = apply_sigmoid(np.array([[np.nan, 0.0], [1.0, np.nan]], np.float32))
    assert np.isnan(scores).tolist() == [[True, False], [False, True]]
    assert scores[0, 1] == 0.5


# --- the rule


def select_by_hand(scores: npt.NDArray[np.float32], thresholds: list[float], labels: tuple[str, ...]) -> dict[str, Any]:
    """PaddleX's rule for one image, one class at a time."""
    found = []
    for class_id in range(len(labels)):
        if np.float32(scores[class_id]) > np.float32(thresholds[class_id]):
            found.append((class_id, float(scores[class_id])))
    found.sort(key=lambda item: item[1], reverse=True)
    return {
        "class_ids": [class_id for class_id, _ in found],
        "scores": [float(np.around(score, 5)) for _, score in found],
        "label_names": [labels[class_id] for class_id, _ in found],
    }


@pytest.mark.parametrize("seed", range(5))
def test_same_as_rule_by_hand(seed: int) -> None:
    generator = np.random.default_rng(seed)
    labels = tuple(f"label {index}" for index in range(80))
    for _ in range(20):
        scores = generator.random(80, dtype=np.float32)
        thresholds = [round(float(threshold), int(generator.integers(1, 6))) for threshold in generator.random(80)]
        # some scores equal another one, some their own threshold
        scores[generator.integers(0, 80, 8)] = scores[generator.integers(0, 80, 8)]
        scores[:8] = np.array(thresholds[:8], np.float32)
        expected = select_by_hand(scores, thresholds, labels)
        assert select_labels(scores, np.array(thresholds, np.float32), labels) == expected
        assert 0 < len(expected["class_ids"]) < 80


@pytest.mark.parametrize("threshold", [0.5, 0.3, 0.1, 0.7, 0.0, 1.0])
def test_score_at_its_threshold_is_not_predicted(threshold: float) -> None:
    """Both are float32: 0.3 as float32 is above 0.3 as float64, and still not above the threshold 0.3."""
    score = np.float32(threshold)
    scores = np.array([np.nextafter(score, np.float32(-1)), score, np.nextafter(score, np.float32(2))], np.float32)
    thresholds = np.asarray(resolve_thresholds(threshold, ("a", "b", "c")), np.float32)
    assert select_labels(scores, thresholds, ("a", "b", "c"))["label_names"] == ["c"]


def test_equal_scores_by_class_id() -> None:
    labels = tuple(map(str, range(100)))
    scores = np.tile(floats(0.7, 0.9), 50)
    result = select_labels(scores, np.full(100, 0.5, np.float32), labels)
    assert result["class_ids"] == [*range(1, 100, 2), *range(0, 100, 2)]


def test_scores_have_five_decimals() -> None:
    """In the order of the unrounded ones."""
    scores = floats(0.800001, 0.800002, 0.123456789, 0.999996, 0.99999, 0.000004, 1 / 3)
    result = select_labels(scores, np.zeros(7, np.float32), LABELS + LABELS)
    assert result["class_ids"] == [3, 4, 1, 0, 6, 2, 5]
    assert json.dumps(result["scores"]) == "[1.0, 0.99999, 0.8, 0.8, 0.33333, 0.12346, 0.0]"


def test_result_is_plain_python() -> None:
    result = select_labels(floats(0.9, 0.8), floats(0.5, 0.5), ("a", "é"))
    assert json.loads(json.dumps(result)) == result
    assert {type(value) for values in result.values() for value in values} == {int, float, str}


# --- thresholds


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.25, (0.25,) * 5),
        (1, (1.0,) * 5),
        (-1, (-1.0,) * 5),
        ([0.1, 0.2, 0.3, 0.4, 0.5], (0.1, 0.2, 0.3, 0.4, 0.5)),
        ((0, 1, 0, 1, 0), (0.0, 1.0, 0.0, 1.0, 0.0)),
        ({"default": 0.5}, (0.5,) * 5),
        ({"default": 0.5, 1: 0.3, 4: 0}, (0.5, 0.3, 0.5, 0.5, 0.0)),
        ({"default": 0.5, "1": 0.3, "4": 0.2}, (0.5, 0.3, 0.5, 0.5, 0.2)),
        ({"default": 0.5, "bicycle": 0.3, "dog": 1}, (0.5, 0.3, 0.5, 0.5, 1.0)),
        ({1: 0.3, "dog": 0.2, "0": 0.1, "default": 0.5}, (0.1, 0.3, 0.5, 0.5, 0.2)),
    ],
)
def test_forms(value: object, expected: tuple[float, ...]) -> None:
    thresholds = resolve_thresholds(value, LABELS)
    assert thresholds == expected
    assert {type(threshold) for threshold in thresholds} == {float}
    assert parse_thresholds(json.dumps(value), LABELS) == expected


def test_labels_that_look_like_numbers() -> None:
    labels = ("yes", "no", "07", "2024")
    assert resolve_thresholds({"default": 0.5, "07": 0, "2024": 1, "1": 0.3}, labels) == (0.5, 0.3, 0.0, 1.0)
    assert resolve_thresholds({"default": 0.5, "-1": 0.3, "٣": 0.2, "1.0": 0.1}, ("-1", "٣", "1.0")) == (0.3, 0.2, 0.1)
    assert resolve_thresholds({"default": 0.5, "1": 0.3}, ("0", "1")) == (0.5, 0.3), "label and class id of one class"
    assert resolve_thresholds({"default": 0.5, "1": 0.3}, ("yes", "default")) == (0.5, 0.3)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"default": 0.5, "1": 0}', "got '1', which is the label of class 0 and the id of class 1; pass a list."),
        ('{"default": 0.5, "x": 0, "x": 1}', "expected each key once, got 'x' twice."),
        ('{"default": 0.5, "x": 0, "2": 1}', "expected each class once, got two keys for class 2."),
        ('{"default": 0.5, "02": 1}', "got the key '02'."),
    ],
)
def test_keys_that_could_mean_two_things(text: str, words: str) -> None:
    with pytest.raises(ThresholdError) as caught:
        parse_thresholds(text, ("1", "0x", "x"))
    assert str(caught.value).endswith(words)


FORMS = (
    'a number, a mapping like {"default": 0.5, "0": 0.3} of class ids or labels with a "default", or a list with one '
    "number for each label"
)
IDS = "threshold: expected a class id from 0 to 4 or one of the model's labels, got the key"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, f"threshold: expected {FORMS}, got None."),
        ("0.5", f"threshold: expected {FORMS}, got '0.5'."),
        (math.nan, f"threshold: expected {FORMS}, got nan."),
        ([], "threshold: expected a list of 5 numbers, one for each label, got 0."),
        ([0.5] * 6, "threshold: expected a list of 5 numbers, one for each label, got 6."),
        ([0.5, 0.5, None, 0.5, 0.5], "threshold[2]: expected a finite number, got None."),
        ([0.5, 0.5, 0.5, 0.5, False], "threshold[4]: expected a finite number, got False."),
        ({}, 'threshold: expected a mapping with the key "default", got one without it.'),
        ({"default": None}, 'threshold: expected a mapping with the key "default", got one without it.'),
        ({"default": "0.5"}, "threshold[\"default\"]: expected a finite number, got '0.5'."),
        ({"default": 0.5, 1: "a"}, "threshold['1']: expected a finite number, got 'a'."),
        ({"default": 0.5, 5: 0.5}, f"{IDS} '5'."),
        ({"default": 0.5, -1: 0.5}, f"{IDS} '-1'."),
        ({"default": 0.5, "99999999999": 0.5}, f"{IDS} '99999999999'."),
        ({"default": 0.5, "cow": 0.5}, f"{IDS} 'cow'."),
        ({"default": 0.5, True: 0.5}, f"{IDS} 'True'."),
        ({"default": 0.5, "²": 0.5}, f"{IDS} '\\xb2'."),
        ({"default": 0.5, "x" * 100: 0.5}, f"{IDS} '{'x' * 59}...."),
    ],
)
def test_wrong_form(value: object, message: str) -> None:
    with pytest.raises(ThresholdError) as caught:
        resolve_thresholds(value, LABELS)
    assert str(caught.value) == message


@pytest.mark.parametrize("text", ["", "a", "0.5.5", "{", "{'default': 0.5}", "[0.5", ".5", "0.5 0.5", '{"default" 1}'])
def test_text_that_is_no_json(text: str) -> None:
    with pytest.raises(ThresholdError) as caught:
        parse_thresholds(text, LABELS)
    assert str(caught.value) == f"threshold: expected JSON text of {FORMS}, got {text!r}."


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "true", "false", "null", '"0.5"', "1e999"])
def test_json_that_is_no_threshold(text: str) -> None:
    with pytest.raises(ThresholdError, match=r"^threshold: expected a number, "):
        parse_thresholds(text, LABELS)
    with pytest.raises(ThresholdError, match=r"^threshold\[\"default\"\]: expected a finite number|with the key"):
        parse_thresholds(f'{{"default": {text}}}', LABELS)
    with pytest.raises(ThresholdError, match=r"^threshold\[4\]: expected a finite number"):
        parse_thresholds(f"[0.5, 0.5, 0.5, 0.5, {text}]", LABELS)


@pytest.mark.parametrize("form", ["{}", '{{"default": {}}}', "[0.5, 0.5, 0.5, 0.5, {}]"])
def test_nested_json(form: str) -> None:
    """At every depth, up to and beyond what Python's recursion limit allows."""
    for depth in (*range(1, 1200, 7), *range(900, 1010), 10_000, 200_000):
        with pytest.raises(ThresholdError) as caught:
            parse_thresholds(form.format("[" * depth + "]" * depth), LABELS)
        assert len(str(caught.value)) < 300


def test_message_is_short_and_one_line() -> None:
    for text in ("x" * 10_000, "\n" * 1000, '"' + "\\n" * 1000 + '"', "\u2028" * 100):
        with pytest.raises(ThresholdError) as caught:
            parse_thresholds(text, LABELS)
        assert len(str(caught.value)) < 400
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("form", ["{}", '{{"default": {}}}', "[0.5, 0.5, 0.5, 0.5, {}]"])
@pytest.mark.parametrize("digits", [400, 5000])
def test_huge_integer(form: str, digits: int) -> None:
    """In the backend, anything but a ThresholdError fails all requests of the batch."""
    with pytest.raises(ThresholdError):
        parse_thresholds(form.format("1" * digits), LABELS)
