"""Requests of images that identify themselves, and the check that an answer fits its image and thresholds."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from benchmarks.asking import ImageReply
from benchmarks.endurance.identity_model import (
    FORMATS,
    LABELS,
    NUMBERS,
    decode,
    expected_scores,
    make_image,
    make_spec,
)
from mlcls.model.contract import NO_SCORE

# OpenVINO's float32 against numpy's float64, with a margin; neighboring grays are at least 0.004 apart.
TOLERANCE: Final = 1e-4
BAD_IMAGES: Final = (b"no image", b"<html>404</html>", b"\xff\xd8\xff\xe0 cut", b"\x89PNG\r\n\x1a\n" + bytes(40))
_DECIMALS: Final = 5

Threshold = float | dict[str, float] | list[float]


@dataclasses.dataclass(frozen=True)
class Question:
    """One request.

    Attributes:
        numbers: The number in each image; None for bytes that are not an image.
        images: The images.
        threshold: The request's threshold; None for the model's own.
    """

    numbers: tuple[int | None, ...]
    images: tuple[bytes, ...]
    threshold: Threshold | None

    @property
    def threshold_text(self) -> str | None:
        """The request parameter."""
        return None if self.threshold is None else json.dumps(self.threshold)

    def find_fault(self, replies: Sequence[ImageReply], version: int | None) -> str | None:
        """Return what is wrong with the replies of one response; None if all belong to their images.

        Args:
            replies: One for each image.
            version: The version that the response states; None if the client does not tell.
        """
        if len(replies) != len(self.images):
            return f"{len(replies)} answers for {len(self.images)} images"
        named = {int(name.rpartition(" v")[2]) for reply in replies for name in reply.result.get("label_names", ())}
        versions = named if version is None else named | {version}
        if len(versions) > 1:
            return f"answers of the versions {sorted(versions)} in one response"
        for number, reply in zip(self.numbers, replies, strict=True):
            fault = self._find_in_image(number, reply, next(iter(versions), None))
            if fault is not None:
                return f"image of {number}, threshold {self.threshold}: {fault}"
        return None

    def _find_in_image(self, number: int | None, reply: ImageReply, version: int | None) -> str | None:
        if number is None:
            is_refused = reply.status != "OK" and "class_ids" not in reply.result
            if not is_refused or (reply.scores is not None and not (reply.scores == NO_SCORE).all()):
                return f"no image, but the answer {reply.result} with the status {reply.status!r}"
            return None
        if reply.status != "OK" or "error" in reply.result:
            return f"the status {reply.status!r}"
        if version is None:
            return None if not reply.result["class_ids"] else "labels without a version"
        expected = expected_scores(number, version)
        if reply.scores is not None and not np.abs(reply.scores - expected).max() <= TOLERANCE:
            return decode(reply.scores, version)
        return self._find_in_result(reply.result, expected, version)

    def _find_in_result(self, result: Mapping[str, Any], expected: npt.NDArray[np.float32], version: int) -> str | None:
        limits = self._limits(version)
        ids = list(result["class_ids"])
        came = np.isin(np.arange(LABELS), ids)
        clear = np.abs(expected - limits) > TOLERANCE
        if len(set(ids)) != len(ids) or (came != (expected > limits))[clear].any():
            return f"the labels {ids}, expected {np.flatnonzero(expected > limits).tolist()}"
        if result["label_names"] != [make_spec(version).labels[index] for index in ids]:
            return f"the names {result['label_names']} for the labels {ids} of version {version}"
        scores = np.array(result["scores"])
        if len(scores) != len(ids) or (len(ids) and np.abs(scores - expected[ids]).max() > TOLERANCE + 10**-_DECIMALS):
            return f"the scores {result['scores']} for the labels {ids}"
        return (
            None if list(scores) == sorted(scores, reverse=True) else "labels that are not in the order of their scores"
        )

    def _limits(self, version: int) -> npt.NDArray[np.float32]:
        """Return the threshold of each label by the rule of the contract, without the code that serves it."""
        given = self.threshold
        if given is None:
            limits: Sequence[float] = make_spec(version).thresholds
        elif isinstance(given, dict):
            limits = [given.get(str(index), given["default"]) for index in range(LABELS)]
        else:
            limits = given if isinstance(given, list) else [given] * LABELS
        return np.asarray(limits, np.float32)


def make_question(source: random.Random, batch_sizes: Sequence[int], bad_share: float = 0.15) -> Question:
    """Return a request with random numbers, formats, size and thresholds.

    Args:
        source: Source of randomness.
        batch_sizes: Sizes to choose from.
        bad_share: Share of requests that contain bytes that are not an image, next to at least one that is.
    """
    count = source.choice(batch_sizes)
    numbers: list[int | None] = [source.randrange(NUMBERS) for _ in range(count)]
    if count > 1 and source.random() < bad_share:
        for place in source.sample(range(count), source.randint(1, count - 1)):
            numbers[place] = None
    images = [
        source.choice(BAD_IMAGES) if number is None else make_image(number, source.choice(FORMATS))
        for number in numbers
    ]
    return Question(tuple(numbers), tuple(images), _make_threshold(source))


def _make_threshold(source: random.Random) -> Threshold | None:
    form = source.randrange(4)
    if form == 0:
        return None
    if form == 1:
        return round(source.uniform(0.0, 0.99), 3)
    if form == 2:
        ids = source.sample(range(LABELS), source.randint(0, 6))
        own = {str(index): round(source.random(), 3) for index in ids}
        return {"default": round(source.uniform(0.1, 0.9), 3), **own}
    return [round(source.random(), 3) for _ in range(LABELS)]
