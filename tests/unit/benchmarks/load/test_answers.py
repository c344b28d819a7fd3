"""The load test's check of each answer, against answers that the served code makes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from benchmarks.asking import ImageReply, Refusal, Reply
from benchmarks.load.answers import AnswerBook, Kind, learn_answers, read_answers, write_answers
from benchmarks.load.images import LoadTestError, Sample, make_bad_files
from mlcls.backends.steps import postprocess_logits
from mlcls.model.contract import OK
from mlcls.model.spec import ModelSpec

PHOTOS = [Sample(f"{number}.jpg", bytes([number]) * 9) for number in range(6)]
TEXT, *_ = make_bad_files(PHOTOS[0])
QUEUE_FULL = Refusal("UNAVAILABLE", "in ensemble 'x', [request id: <id_unknown>] Exceeds maximum queue size")


class Server:
    """Answers as the served steps do, from the logits that it has for each photo."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        random = np.random.default_rng(0)
        self.logits = {photo.data: random.normal(0, 2, spec.num_labels).astype(np.float32) for photo in PHOTOS}

    def ask(self, images: Sequence[bytes]) -> Reply:
        statuses = [OK if image in self.logits else "image: expected a file, got text (30 bytes)" for image in images]
        logits = np.stack([self.logits.get(image, np.zeros(self.spec.num_labels, np.float32)) for image in images])
        thresholds = np.asarray(self.spec.thresholds, np.float32)
        scores, results, texts = postprocess_logits(logits, statuses, thresholds, self.spec)
        return [ImageReply(*row) for row in zip(scores, map(json.loads, results), texts, strict=True)]


@pytest.fixture
def server(custom_spec: ModelSpec) -> Server:
    return Server(custom_spec)


@pytest.fixture
def book(server: Server) -> AnswerBook:
    return learn_answers(server.ask, PHOTOS)


def answer_to(server: Server, photo: Sample) -> ImageReply:
    reply = server.ask([photo.data])
    assert not isinstance(reply, Refusal)
    return reply[0]


def change_result(reply: ImageReply, **fields: Any) -> ImageReply:
    return dataclasses.replace(reply, result={**reply.result, **fields})


def first_with_labels(server: Server) -> tuple[Sample, ImageReply]:
    """A photo with two labels or more."""
    for photo in PHOTOS:
        reply = answer_to(server, photo)
        if len(reply.result["class_ids"]) > 1:
            return photo, reply
    raise AssertionError("no photo has two labels")


def test_right_answers_in_batches_with_a_bad_image(server: Server, book: AnswerBook) -> None:
    batch = [PHOTOS[2], TEXT, PHOTOS[0], PHOTOS[2]]
    assert book.judge(batch, server.ask([sample.data for sample in batch])) == (Kind.RIGHT, "")
    assert book.judge([TEXT, TEXT], server.ask([TEXT.data] * 2)) == (Kind.REFUSED, "")


def test_exchanged_answers_are_crossed(server: Server, book: AnswerBook) -> None:
    reply = server.ask([PHOTOS[1].data, PHOTOS[0].data])
    assert book.judge(PHOTOS[:2], reply) == (Kind.CROSSED, "0.jpg: got the answer of 1.jpg")


@pytest.mark.parametrize(("shift", "kind"), [(0.5e-4, Kind.RIGHT), (2e-4, Kind.WRONG), (float("nan"), Kind.WRONG)])
def test_scores_may_differ_by_the_tolerance(server: Server, book: AnswerBook, shift: float, kind: Kind) -> None:
    reply = answer_to(server, PHOTOS[0])
    assert reply.scores is not None
    scores = reply.scores + np.float32(shift)
    shifted = dataclasses.replace(reply, scores=scores)
    rounded = [round(float(scores[class_id]), 5) for class_id in reply.result["class_ids"]]
    assert book.judge(PHOTOS[:1], [change_result(shifted, scores=rounded)])[0] == kind


def test_labels_must_follow_from_the_scores(server: Server, book: AnswerBook) -> None:
    photo, reply = first_with_labels(server)
    fewer = {name: values[:-1] for name, values in reply.result.items()}
    reverse = {name: values[::-1] for name, values in reply.result.items()}
    renamed = change_result(reply, label_names=["other", *reply.result["label_names"][1:]])
    rescored = change_result(reply, scores=[0.99999, *reply.result["scores"][1:]])
    for changed in (change_result(reply, **fewer), change_result(reply, **reverse), renamed, rescored):
        kind, wrong = book.judge([photo], [changed])
        assert kind == Kind.WRONG, changed
        assert photo.name in wrong
    for broken in ({}, {"class_ids": "x"}, {**reply.result, "class_ids": [99] * len(reply.result["class_ids"])}):
        assert book.judge([photo], [dataclasses.replace(reply, result=broken)])[0] == Kind.WRONG
    assert book.judge([photo], [reply])[0] == Kind.RIGHT


def test_a_label_may_flip_only_within_what_the_learnt_answers_leave_open() -> None:
    def scores(*values: float) -> npt.NDArray[np.float32]:
        return np.array(values, np.float32)

    def reply(row: npt.NDArray[np.float32], *class_ids: int) -> ImageReply:
        labels = [f"label {class_id}" for class_id in class_ids]
        rounded = [round(float(row[class_id]), 5) for class_id in class_ids]
        return ImageReply(row, {"class_ids": list(class_ids), "scores": rounded, "label_names": labels}, OK)

    near = {PHOTOS[0].data: reply(scores(0.50005, 0.9), 1, 0), PHOTOS[1].data: reply(scores(0.2, 0.1))}
    book = learn_answers(lambda images: [near[images[0]]], PHOTOS[:2])
    # label 0 was predicted at 0.50005 and not at 0.2; now it is at 0.5, so its threshold may lie between
    assert book.judge(PHOTOS[:1], [reply(scores(0.5, 0.9), 1)])[0] == Kind.RIGHT
    assert book.judge(PHOTOS[:1], [reply(scores(0.50009, 0.9), 1)])[0] == Kind.WRONG
    assert book.judge(PHOTOS[:1], [reply(scores(0.50005, 0.9), 1)])[0] == Kind.WRONG
    assert book.judge(PHOTOS[1:2], [reply(scores(0.2, 0.1), 0)])[0] == Kind.WRONG


def test_a_bad_image_must_be_refused_with_its_own_reason(server: Server, book: AnswerBook) -> None:
    good, bad = answer_to(server, PHOTOS[0]), Refusal("INVALID_ARGUMENT", "image: got text (30 bytes that begin")
    assert book.judge([TEXT], bad) == book.judge([TEXT, TEXT], bad) == (Kind.REFUSED, "")
    assert book.judge([TEXT], Refusal("INVALID_ARGUMENT", "image: got 0 bytes"))[0] == Kind.WRONG
    assert book.judge([TEXT], Refusal("INTERNAL", "image: got text (30 bytes"))[0] == Kind.ERROR
    assert book.judge([TEXT], [good])[0] == Kind.WRONG
    assert book.judge([TEXT], [dataclasses.replace(good, status="got text (30 bytes")])[0] == Kind.WRONG


@pytest.mark.parametrize(
    ("refusal", "kind"),
    [
        (QUEUE_FULL, Kind.UNAVAILABLE),
        (Refusal("UNAVAILABLE", "Request timeout expired"), Kind.UNAVAILABLE),
        (Refusal("UNAVAILABLE", "failed to connect to all addresses"), Kind.LOST),
        (Refusal("NO_ANSWER", "ConnectionResetError"), Kind.LOST),
        (Refusal("DEADLINE_EXCEEDED", "Deadline Exceeded"), Kind.LATE),
        (Refusal("INTERNAL", "KeyError"), Kind.ERROR),
        (Refusal("MALFORMED", "expected three outputs"), Kind.ERROR),
        (Refusal("INVALID_ARGUMENT", "got text (30 bytes"), Kind.ERROR),
    ],
)
def test_refusals_of_good_images(book: AnswerBook, refusal: Refusal, kind: Kind) -> None:
    found, wrong = book.judge([TEXT, PHOTOS[0]], refusal)
    assert found == kind
    assert refusal.message in wrong


def test_a_good_image_with_an_error_is_a_server_error(server: Server, book: AnswerBook) -> None:
    reply = server.ask([b"unknown to the server", PHOTOS[1].data])
    assert book.judge(PHOTOS[:2], reply)[0] == Kind.ERROR


def test_learning_takes_no_refusal_and_no_second_opinion(server: Server) -> None:
    with pytest.raises(LoadTestError, match=r"UNAVAILABLE.*in ensemble"):
        learn_answers(lambda images: QUEUE_FULL, PHOTOS)
    asked: list[bytes] = []

    def unsteady(images: Sequence[bytes]) -> Reply:
        asked.extend(images)
        return server.ask([PHOTOS[3].data] if len(asked) == len(PHOTOS) + 2 else images)

    with pytest.raises(LoadTestError, match=r"another one: 1.jpg: got the answer of 3.jpg"):
        learn_answers(unsteady, PHOTOS)


def test_photos_with_one_answer_are_told(server: Server, book: AnswerBook) -> None:
    assert book.alike == 0
    server.logits[PHOTOS[1].data] = server.logits[PHOTOS[4].data]
    assert learn_answers(server.ask, PHOTOS).alike == 1


def test_answers_survive_their_file(server: Server, book: AnswerBook, tmp_path: Path) -> None:
    path = tmp_path / "new" / "expected.json"
    write_answers(path, book)
    read = read_answers(path, PHOTOS, tolerance=0.0)
    replies = [answer_to(server, photo) for photo in PHOTOS]
    assert read.judge(PHOTOS, replies) == (Kind.RIGHT, "")
    assert read.labels == book.labels
    content = json.loads(path.read_text(encoding="utf-8"))
    del content["answers"][PHOTOS[0].key]
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(LoadTestError, match=r"got none for 0\.jpg; remove the file"):
        read_answers(path, PHOTOS)
    path.write_text("[]", encoding="utf-8")
    with pytest.raises(LoadTestError, match="Expected a file of answers"):
        read_answers(path, PHOTOS)
