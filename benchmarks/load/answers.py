"""The check of each answer against the one that an idle server gave for its image.

Before the load, the expected answers are learned from one request per photo. Under load, an answer's scores must match
them within a tolerance, and its labels must follow from its scores: the learned answers determine each label's
threshold to within the gap between the highest score without the label and the lowest one with it.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from benchmarks.asking import ImageReply, Refusal, Reply
from benchmarks.load.images import LoadTestError, Sample

# FP32 on a CPU: the gate's limit between an image's answers alone and in a batch.
DEFAULT_TOLERANCE: Final = 1e-4

# Triton's texts for a full queue and for a request that has waited in it for too long. gRPC's status for a broken
# connection is UNAVAILABLE as well.
_QUEUE_WORDS: Final = re.compile(r"exceeds maximum queue size|timeout expired|request timed out", re.IGNORECASE)


class Kind(str, enum.Enum):
    """The outcome of one image; a request has the first of these outcomes that one of its images has."""

    CROSSED = "crossed answer"
    WRONG = "wrong answer"
    ERROR = "server error"
    LOST = "no answer"
    LATE = "late"
    UNAVAILABLE = "unavailable"
    RIGHT = "right"
    REFUSED = "bad image refused"


# Kinds that must not occur at all. A full server that says so (UNAVAILABLE) does what it should.
FAULTS: Final = (Kind.CROSSED, Kind.WRONG, Kind.ERROR, Kind.LOST, Kind.LATE)

_KIND_OF_CODE: Final = {"DEADLINE_EXCEEDED": Kind.LATE, "NO_ANSWER": Kind.LOST, "CANCELLED": Kind.LOST}


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
        self.answers, self.labels, self.tolerance = answers, labels, tolerance
        self._scores = np.stack([answer.scores for answer in answers.values()])
        predicted = np.zeros(self._scores.shape, bool)
        for row, answer in zip(predicted, answers.values(), strict=True):
            row[list(answer.class_ids)] = True
        self._never = np.where(predicted, -np.inf, self._scores).max(axis=0)
        self._always = np.where(predicted, self._scores, np.inf).min(axis=0)

    @property
    def alike(self) -> int:
        """Number of pairs of photos whose answers are too similar to detect a swap."""
        distances = np.abs(self._scores[:, None] - self._scores).max(axis=2)
        return int((np.triu(distances <= 2 * self.tolerance, 1)).sum())

    def judge(self, batch: Sequence[Sample], reply: Reply) -> tuple[Kind, str]:
        """Return the outcome of a request, the worst of its images', and what is wrong with that one."""
        if isinstance(reply, Refusal):
            return self._judge_refusal(batch, reply)
        judged = [self._judge_image(*pair) for pair in zip(batch, reply, strict=True)]
        return min(judged, key=lambda outcome: list(Kind).index(outcome[0]))

    def _judge_refusal(self, batch: Sequence[Sample], refusal: Refusal) -> tuple[Kind, str]:
        said = f"{refusal.code}: {refusal.message[:300]}"
        if refusal.code == "INVALID_ARGUMENT" and all(sample.refusal for sample in batch):
            # it has the text for the first image
            if re.search(str(batch[0].refusal), refusal.message):
                return Kind.REFUSED, ""
            return Kind.WRONG, f"{batch[0].name}: expected a refusal like {batch[0].refusal!r}, got {said}"
        if refusal.code == "UNAVAILABLE":
            return (Kind.UNAVAILABLE if _QUEUE_WORDS.search(refusal.message) else Kind.LOST), said
        return _KIND_OF_CODE.get(refusal.code, Kind.ERROR), said

    def _judge_image(self, sample: Sample, reply: ImageReply) -> tuple[Kind, str]:
        if sample.refusal is not None:
            if re.search(sample.refusal, reply.status) and reply.result == {"error": reply.status}:
                return Kind.REFUSED, ""
            return Kind.WRONG, f"{sample.name}: expected a refusal like {sample.refusal!r}, got {reply.status!r}"
        if reply.status != "OK" or reply.scores is None:
            return Kind.ERROR, f"{sample.name}: expected an answer, got {reply.status!r}"
        expected = self.answers[sample.key]
        if reply.scores.shape != expected.scores.shape:
            return Kind.WRONG, f"{sample.name}: expected {expected.scores.shape} scores, got {reply.scores.shape}"
        difference = float(np.abs(reply.scores - expected.scores).max())
        if difference <= self.tolerance:
            fault = self._find_in_labels(reply.result, reply.scores)
            return (Kind.WRONG, f"{expected.name}: {fault}") if fault else (Kind.RIGHT, "")
        for other in self.answers.values():
            if float(np.abs(reply.scores - other.scores).max()) <= self.tolerance:
                return Kind.CROSSED, f"{expected.name}: got the answer of {other.name}"
        wrong = f"expected scores within {self.tolerance:.0e}, got a difference of {difference:.2e}"
        return Kind.WRONG, f"{expected.name}: {wrong}"

    def _find_in_labels(self, result: Mapping[str, Any], scores: npt.NDArray[np.float32]) -> str:
        """Return what is wrong with a result, given the scores of the same answer; empty if nothing is."""
        try:
            class_ids = [int(class_id) for class_id in result["class_ids"]]
            names = list(result["label_names"])
            own = [round(float(scores[class_id]), 5) for class_id in class_ids]
            stated = [float(score) for score in result["scores"]]
        except (KeyError, TypeError, ValueError, IndexError) as error:
            return f"{type(error).__name__} {error} in the result {result}"
        predicted = np.zeros(scores.shape, bool)
        predicted[class_ids] = True
        contradicting = np.where(predicted, scores <= self._never, scores >= self._always)
        if contradicting.any():
            return f"class ids {np.flatnonzero(contradicting).tolist()} contradict their scores"
        if stated != own or stated != sorted(stated, reverse=True):
            return f"expected the scores {own} in the result, got {stated}"
        learned = [self.labels.get(class_id, name) for class_id, name in zip(class_ids, names, strict=False)]
        return "" if names == learned and len(names) == len(class_ids) else f"expected labels {learned}, got {names}"


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
        reply = ask([photo.data])
        if isinstance(reply, Refusal) or reply[0].scores is None or "class_ids" not in reply[0].result:
            raise LoadTestError(f"Expected an answer for {photo.name}, got {reply}")
        result = reply[0].result
        answers[photo.key] = Expected(photo.name, reply[0].scores, frozenset(result["class_ids"]))
        labels.update(zip(result["class_ids"], result["label_names"], strict=True))
    book = AnswerBook(answers, labels, tolerance)
    for photo in photos:
        kind, wrong = book.judge([photo], ask([photo.data]))
        if kind is not Kind.RIGHT:
            raise LoadTestError(f"Expected the same answer twice from an idle server, got another one: {wrong}")
    return book


def write_answers(path: Path, book: AnswerBook) -> None:
    """Write expected answers as JSON."""
    answers = {
        key: {"name": each.name, "class_ids": sorted(each.class_ids), "scores": [float(score) for score in each.scores]}
        for key, each in book.answers.items()
    }
    labels = {str(class_id): name for class_id, name in sorted(book.labels.items())}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps({"labels": labels, "answers": answers}, ensure_ascii=False, indent=1), "utf-8")
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
