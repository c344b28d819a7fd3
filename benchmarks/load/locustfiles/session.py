"""One process's part of a load test: what it sends, what it expects and what it has counted."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.load.locustfiles import triton_http
from benchmarks.load.locustfiles.answers import AnswerBook, learn_answers, read_answers
from benchmarks.load.locustfiles.errors import LoadTestError
from benchmarks.load.locustfiles.images import ImageMix, Sample, parse_batch_mix, parse_weights, read_photos
from benchmarks.load.locustfiles.outcomes import FAILURES, Kind, Tally, worst
from benchmarks.load.locustfiles.reply import Reply

_log = logging.getLogger(__name__)


class Session:
    """Draws requests, judges their answers and counts them.

    Attributes:
        mix: What is sent.
        book: What is expected.
        tally: What was counted.
    """

    def __init__(self, mix: ImageMix, book: AnswerBook, tally: Tally) -> None:
        self.mix = mix
        self.book = book
        self.tally = tally

    def begin(self, protocol: str, generator: random.Random) -> list[Sample]:
        """Draw the images of a request, and count them as sent."""
        batch = self.mix.draw(generator)
        self.tally.note_sent(protocol, len(batch))
        return batch

    def finish(self, protocol: str, batch: Sequence[Sample], reply: Reply, latency_s: float) -> tuple[Kind, str]:
        """Count what became of a request.

        Returns:
            The request's kind, and a name for it in locust's statistics.
        """
        kinds, wrong = self.book.judge(batch, reply)
        self.tally.note_answer(protocol, kinds, latency_s, time.time())
        kind = worst(kinds)
        if kind in FAILURES:
            text = f"{protocol}, {len(batch)} images: {kind.value}: {wrong}"
            if self.tally.note_detail(text) and kind is not Kind.UNAVAILABLE:
                _log.error(text)
        if kind is Kind.RIGHT:
            return kind, "1 image" if len(batch) == 1 else f"{len(batch)} images"
        return kind, kind.value


def open_session(options: Any, http_url: str, tally: Tally) -> Session:
    """Read the photos, and read or learns the expected answers.

    Args:
        options: The parsed options of `arguments.add_arguments`.
        http_url: URL of the HTTP API, for learning.
        tally: Where to count.

    Raises:
        LoadTestError: An option is wrong, or the server refuses a photo.
    """
    mix = open_mix(options)
    path = Path(options.expected) if options.expected else None
    if path is not None and path.exists():
        return Session(mix, read_answers(path, mix.good, options.tolerance), tally)
    threshold = options.threshold or None
    _log.info("learning the expected answers of %d photos", len(mix.good))

    def ask(images: Sequence[bytes]) -> Reply:
        return triton_http.ask(http_url, options.model, images, threshold, options.deadline)

    return Session(mix, learn_answers(ask, mix.good, options.tolerance), tally)


def open_mix(options: Any) -> ImageMix:
    """Read the photos and what is to be sent of them.

    Raises:
        LoadTestError: An option is wrong.
    """
    if not options.photos:
        raise LoadTestError("Expected a folder of photos, got none; name one with --photos.")
    if not 0 <= options.bad_share <= 1:
        raise LoadTestError(f"Expected a --bad-share from 0 to 1, got {options.bad_share}.")
    weights = parse_weights(options.image_mix) if options.image_mix else {}
    return ImageMix(read_photos(Path(options.photos)), weights, parse_batch_mix(options.batch_mix), options.bad_share)
