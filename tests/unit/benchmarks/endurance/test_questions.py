"""The checker of the endurance runs notices each way in which an answer can be another's."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.asking import ImageReply
from benchmarks.endurance.identity_model import (
    FORMATS,
    LABELS,
    MODEL,
    NUMBERS,
    decode,
    expected_scores,
    levels_of,
    make_image,
    make_repository,
    make_spec,
)
from benchmarks.endurance.questions import BAD_IMAGES, Question, make_question
from mlcls.backends.steps import postprocess_logits, preprocess_images, request_thresholds
from mlcls.engines.runners import OnnxRuntimeRunner
from mlcls.images.transforms import preprocess
from mlcls.repository.models import Repository
from mlcls.repository.names import ONNX_FILE


def answer_of(number: int, threshold: Any, version: int = 1) -> ImageReply:
    """What the served code answers for the scores of a number."""
    spec = make_spec(version)
    scores = expected_scores(number, version)
    parameters = {} if threshold is None else {"threshold": json.dumps(threshold, ensure_ascii=False)}
    limits = request_thresholds(json.dumps(parameters), spec)
    logits = np.log(scores / (1 - scores))[None].astype(np.float32)
    (row,), (result,), (status,) = postprocess_logits(logits, ["OK"], limits, spec)
    return ImageReply(row, json.loads(result), status)


def question_of(*numbers: int | None, threshold: Any = 0.5) -> Question:
    images = tuple(b"no image" if number is None else make_image(number, "PNG") for number in numbers)
    return Question(tuple(numbers), images, threshold)


REFUSED = ImageReply(np.full(LABELS, -1, np.float32), {"error": "image: expected"}, "image: expected")


def test_right_answers_are_right() -> None:
    source = random.Random(3)
    for number in range(300):
        question = make_question(source, (1, 2, 8, 32))
        version = 1 + number % 3
        answers = [
            REFUSED if shown is None else answer_of(shown, question.threshold, version) for shown in question.numbers
        ]
        assert question.find_fault(answers, version) is None
        assert question.find_fault([without_scores(answer) for answer in answers], None) is None


def test_questions_are_of_all_kinds() -> None:
    source = random.Random(5)
    questions = [make_question(source, (1, 2, 8, 32)) for _ in range(400)]
    assert {type(question.threshold) for question in questions} == {type(None), float, dict, list}
    assert {len(question.images) for question in questions} == {1, 2, 8, 32}
    bad = {
        image
        for question in questions
        for shown, image in zip(question.numbers, question.images, strict=True)
        if shown is None
    }
    assert bad == set(BAD_IMAGES)
    mixed = [question for question in questions if None in question.numbers]
    assert all(set(question.numbers) != {None} for question in mixed), "at least one good image in each"
    assert 20 < len(mixed) < 100


def without_scores(reply: ImageReply, **result: Any) -> ImageReply:
    """As `mlcls_client` returns it."""
    return dataclasses.replace(reply, scores=None, result={**reply.result, **result})


SEVEN, EIGHT = answer_of(7, 0.5), answer_of(8, 0.5)
OTHER_NAMES = [name.replace(" v1", " v2") for name in SEVEN.result["label_names"]]


@pytest.mark.parametrize(
    ("answers", "version", "words"),
    [
        ([EIGHT, SEVEN], 1, "image of 7, threshold 0.5: the answer of 8"),
        ([SEVEN], 1, "1 answers for 2 images"),
        ([answer_of(7, 0.9), EIGHT], 1, "the labels"),
        ([SEVEN, answer_of(8, 0.5, version=2)], 1, "versions [1, 2] in one response"),
        ([SEVEN, REFUSED], 1, "the status 'image: expected'"),
        ([without_scores(EIGHT), without_scores(SEVEN)], None, "image of 7"),
        ([without_scores(SEVEN), answer_of(8, 0.5, version=2)], None, "versions [1, 2]"),
        ([without_scores(SEVEN, label_names=OTHER_NAMES)] * 2, None, "image of 7"),
        ([dataclasses.replace(EIGHT, scores=expected_scores(7, 1)), EIGHT], None, "the labels"),
    ],
)
def test_faults(answers: list[ImageReply], version: int | None, words: str) -> None:
    assert words in str(question_of(7, 8).find_fault(answers, version))


def test_an_answer_for_what_is_no_image() -> None:
    assert "no image, but" in str(question_of(7, None).find_fault([answer_of(7, 0.5), answer_of(8, 0.5)], 1))
    leaking = dataclasses.replace(REFUSED, scores=expected_scores(9, 1))
    assert "no image, but" in str(question_of(7, None).find_fault([answer_of(7, 0.5), leaking], 1))
    assert question_of(7, None).find_fault([answer_of(7, 0.5), REFUSED], 1) is None


def test_numbers_are_told_apart() -> None:
    for version in (1, 2):
        scores = np.stack([expected_scores(number, version) for number in range(NUMBERS)])
        assert len(np.unique(scores > 0.5, axis=0)) == NUMBERS
        assert decode(scores[1234], version) == "the answer of 1234"
        half = np.where(np.arange(LABELS) < LABELS // 2, scores[1234], scores[77])
        assert "mixture" in decode(half, version)
    assert np.abs(expected_scores(5, 1) - expected_scores(5, 2)).max() > 0.5
    assert len({tuple(levels_of(number)) for number in range(NUMBERS)}) == NUMBERS


def test_the_graph_gives_the_expected_scores(tmp_path: Path) -> None:
    root = tmp_path / "model_repository"
    root.mkdir()
    make_repository(root)
    spec = Repository(root).active(MODEL).spec
    runner = OnnxRuntimeRunner(Repository(root).active(MODEL).engine_folder / ONNX_FILE, spec)
    for number, image_format in itertools.product((0, 1, 777, NUMBERS - 1), FORMATS):
        pixels = preprocess(make_image(number, image_format), spec.transform)
        np.testing.assert_allclose(runner.scores(pixels[None])[0], expected_scores(number, 1), rtol=0, atol=1e-5)
    _, statuses = preprocess_images([make_image(1, "PNG"), *BAD_IMAGES], spec)
    assert statuses[0] == "OK"
    assert "OK" not in statuses[1:]
