"""The check of each answer against the one that an idle server gave for its image.

Before the load, the expected answers are learned from one request per photo. Under load, an answer's scores must match
them within a tolerance, and its labels must follow from its scores: the learned answers determine each label's
threshold to within the gap between the highest score without the label and the lowest one with it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from benchmarks.load.locustfiles.errors import LoadTestError
from benchmarks.load.locustfiles.images import Sample
from benchmarks.load.locustfiles.outcomes import Kind
from benchmarks.load.locustfiles.reply import ImageReply, Refusal, Reply

# FP32 on a CPU: the gate's limit between an image's answers alone and in a batch.
DEFAULT_TOLERANCE: Final = 1e-4

# Triton's texts for a full queue and for a request that has waited in it for too long. gRPC's status for a broken
# connection is UNAVAILABLE as well.
_QUEUE_WORDS: Final = re.compile(r"exceeds maximum queue size|timeout expired|request timed out", re.IGNORECASE)

_OK: Final = "OK"


@dataclasses.dataclass(frozen=True)
class Expected:
    """The learned answer to one photo.

    Attributes:
        name: Name of the photo.
        scores: (num_labels,) float32.
        class_ids: The predicted labels.
    """

    name: str
    scores: npt.NDArray[np.float32]
    class_ids: frozenset[int]


class AnswerBook:
    """The expected answers of all photos, by the photo's digest."""

    def __init__(
        self, answers: Mapping[str, Expected], labels: Mapping[int, str], tolerance: float = DEFAULT_TOLERANCE
    ) -> None:
        """Derive the range that each label's threshold lies in.

        Args:
            answers: The learned answers, by digest; 1 or more.
            labels: Name of each predicted class id.
            tolerance: How far a score may be from the expected one.

        Raises:
            LoadTestError: The answers are not from one model.
        """
        if len({len(answer.scores) for answer in answers.values()}) != 1:
            raise LoadTestError("Expected answers from one model, got different numbers of labels or no answer at all.")
        self.answers = answers
        self.labels = labels
        self.tolerance = tolerance
        self._scores = np.stack([answer.scores for answer in answers.values()])
        predicted = np.zeros(self._scores.shape, bool)
        for row, answer in zip(predicted, answers.values(), strict=True):
            row[list(answer.class_ids)] = True
        self._never = np.where(predicted, -np.inf, self._scores).max(axis=0)
        self._always = np.where(predicted, self._scores, np.inf).min(axis=0)

    @property
    def alike(self) -> int:
        """Number of pairs of photos whose answers are too similar to detect a swap."""
        within = 0
        for index, row in enumerate(self._scores):
            distances = np.abs(self._scores[index + 1 :] - row).max(axis=1)
            within += int((distances <= 2 * self.tolerance).sum())
        return within

    def judge(self, batch: Sequence[Sample], reply: Reply) -> tuple[list[Kind], str]:
        """Return the outcome of each image of a request, and what is wrong with the first that failed."""
        if isinstance(reply, Refusal):
            return self._judge_refusal(batch, reply)
        judged = [self._judge_image(*pair) for pair in zip(batch, reply, strict=True)]
        wrong = next((text for _, text in judged if text), "")
        return [kind for kind, _ in judged], wrong

    def _judge_refusal(self, batch: Sequence[Sample], refusal: Refusal) -> tuple[list[Kind], str]:
        said = f"{refusal.code}: {refusal.message[:300]}"
        kind = Kind.ERROR
        if refusal.code == "INVALID_ARGUMENT" and all(sample.refusal for sample in batch):
            # it has the text for the first image
            if re.search(str(batch[0].refusal), refusal.message):
                return [Kind.REFUSED] * len(batch), ""
            kind, said = Kind.WRONG, f"{batch[0].name}: expected a refusal like {batch[0].refusal!r}, got {said}"
        elif refusal.code == "UNAVAILABLE":
            kind = Kind.UNAVAILABLE if _QUEUE_WORDS.search(refusal.message) else Kind.LOST
        elif refusal.code == "DEADLINE_EXCEEDED":
            kind = Kind.LATE
        elif refusal.code in ("NO_ANSWER", "CANCELLED"):
            kind = Kind.LOST
        return [kind] * len(batch), said

    def _judge_image(self, sample: Sample, reply: ImageReply) -> tuple[Kind, str]:
        if sample.refusal is not None:
            if re.search(sample.refusal, reply.status) and reply.result == {"error": reply.status}:
                return Kind.REFUSED, ""
            return Kind.WRONG, f"{sample.name}: expected a refusal like {sample.refusal!r}, got {reply.status!r}"
        if reply.status != _OK:
            return Kind.ERROR, f"{sample.name}: expected an answer, got {reply.status!r}"
        expected = self.answers[sample.key]
        if reply.scores.shape != expected.scores.shape:
            return Kind.WRONG, f"{sample.name}: expected {expected.scores.shape} scores, got {reply.scores.shape}"
        difference = float(np.abs(reply.scores - expected.scores).max())
        if not difference <= self.tolerance:
            return self._judge_other_scores(expected, reply, difference)
        return self._judge_labels(expected, reply)

    def _judge_other_scores(self, expected: Expected, reply: ImageReply, difference: float) -> tuple[Kind, str]:
        for other in self.answers.values():
            if float(np.abs(reply.scores - other.scores).max()) <= self.tolerance:
                return Kind.CROSSED, f"{expected.name}: got the answer of {other.name}"
        return (
            Kind.WRONG,
            f"{expected.name}: expected scores within {self.tolerance:.0e}, got a difference of {difference:.2e}",
        )

    def _judge_labels(self, expected: Expected, reply: ImageReply) -> tuple[Kind, str]:
        """Check the result against the answer's own scores."""
        try:
            class_ids = [int(class_id) for class_id in reply.result["class_ids"]]
            scores = [float(score) for score in reply.result["scores"]]
            names = list(reply.result["label_names"])
            own = [round(float(reply.scores[class_id]), 5) for class_id in class_ids]
        except (KeyError, TypeError, ValueError, IndexError) as error:
            return Kind.WRONG, f"{expected.name}: {type(error).__name__} {error} in the result {reply.result}"
        predicted = np.zeros(reply.scores.shape, bool)
        predicted[class_ids] = True
        contradicting = np.where(predicted, reply.scores <= self._never, reply.scores >= self._always)
        if contradicting.any():
            changed = np.flatnonzero(contradicting).tolist()
            return Kind.WRONG, f"{expected.name}: class ids {changed} contradict their scores"
        if scores != own or scores != sorted(scores, reverse=True):
            return Kind.WRONG, f"{expected.name}: expected the scores {own} in the result, got {scores}"
        learnt = [self.labels.get(class_id, name) for class_id, name in zip(class_ids, names, strict=False)]
        if len(names) != len(class_ids) or names != learnt:
            return Kind.WRONG, f"{expected.name}: expected the labels {learnt}, got {names}"
        return Kind.RIGHT, ""


def learn_answers(
    ask: Callable[[Sequence[bytes]], Reply], photos: Sequence[Sample], tolerance: float = DEFAULT_TOLERANCE
) -> AnswerBook:
    """Ask an idle server for each photo alone, twice.

    Args:
        ask: Sends one request with these images.
        photos: The photos.
        tolerance: See `AnswerBook`.

    Raises:
        LoadTestError: The server refuses a photo, or answers differently the second time.
    """
    answers: dict[str, Expected] = {}
    labels: dict[int, str] = {}
    for photo in photos:
        reply = _ask_one(ask, photo)
        answers[photo.key] = Expected(photo.name, reply.scores, frozenset(reply.result["class_ids"]))
        labels.update(zip(reply.result["class_ids"], reply.result["label_names"], strict=True))
    book = AnswerBook(answers, labels, tolerance)
    for photo in photos:
        _, wrong = book.judge([photo], [_ask_one(ask, photo)])
        if wrong:
            raise LoadTestError(f"Expected the same answer twice from an idle server, got another one: {wrong}")
    return book


def write_answers(path: Path, book: AnswerBook) -> None:
    """Write expected answers as JSON."""
    answers = {
        key: {
            "name": answer.name,
            "class_ids": sorted(answer.class_ids),
            "scores": [float(score) for score in answer.scores],
        }
        for key, answer in book.answers.items()
    }
    labels = {str(class_id): name for class_id, name in sorted(book.labels.items())}
    text = json.dumps({"labels": labels, "answers": answers}, ensure_ascii=False, indent=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def read_answers(path: Path, photos: Sequence[Sample], tolerance: float = DEFAULT_TOLERANCE) -> AnswerBook:
    """Read expected answers.

    Raises:
        LoadTestError: The file cannot be read, or has no answer for a photo.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        answers = {
            key: Expected(entry["name"], np.array(entry["scores"], np.float32), frozenset(entry["class_ids"]))
            for key, entry in content["answers"].items()
        }
        labels = {int(class_id): name for class_id, name in content["labels"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LoadTestError(f"Expected a file of answers written by a load test, got {path}: {error}.") from error
    missing = [photo.name for photo in photos if photo.key not in answers]
    if missing:
        raise LoadTestError(
            f"Expected answers for all {len(photos)} photos in {path}, got none for {', '.join(missing[:3])}"
            f"{' and others' if len(missing) > 3 else ''}; remove the file to learn them again."
        )
    return AnswerBook(answers, labels, tolerance)


def _ask_one(ask: Callable[[Sequence[bytes]], Reply], photo: Sample) -> ImageReply:
    reply = ask([photo.data])
    if isinstance(reply, Refusal):
        raise LoadTestError(f"Expected an answer for {photo.name}, got {reply.code}: {reply.message}")
    if reply[0].status != _OK or "class_ids" not in reply[0].result:
        raise LoadTestError(f"Expected an answer for {photo.name}, got {reply[0].status}")
    return reply[0]
