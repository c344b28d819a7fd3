"""The options of a load test, and one process's part of it: what it sends, what it expects and what it counts."""

from __future__ import annotations

import argparse
import logging
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.load.locustfiles import triton_http
from benchmarks.load.locustfiles.answers import DEFAULT_TOLERANCE, AnswerBook, learn_answers, read_answers
from benchmarks.load.locustfiles.errors import LoadTestError
from benchmarks.load.locustfiles.images import ImageMix, Sample, parse_batch_mix, parse_weights, read_photos
from benchmarks.load.locustfiles.outcomes import FAILURES, Kind, Tally, worst
from benchmarks.load.locustfiles.reply import Reply

SHAPES: Final = ("ramp", "soak", "spike")

_log = logging.getLogger(__name__)


def add_arguments(parser: Any) -> list[argparse.Action]:
    """Add the shared options to a parser of argparse or Locust, and return them."""
    actions: list[argparse.Action] = []

    def add(name: str, **settings: Any) -> None:
        actions.append(parser.add_argument(name, **settings))

    add("--model", default="PP-LCNet_x1_0_ML", help="the served ensemble (default: %(default)s)")
    add("--photos", default="", metavar="DIR", help="photos; each subfolder is a size class")
    add("--image-mix", default="", metavar="NAME=WEIGHT,...", help="weight of each size class; default: equal")
    add(
        "--batch-mix",
        default="1=8,4=1,8=1",
        metavar="SIZE=WEIGHT,...",
        help="images per request (default: %(default)s)",
    )
    add("--bad-share", type=float, default=0.05, help="share of files that must be refused (default: %(default)s)")
    add("--threshold", default="", help="threshold of all requests; default: the model's own")
    add("--think-time", type=float, default=0.0, metavar="S", help="mean pause of a user; default: none")
    add(
        "--deadline",
        type=float,
        default=120.0,
        metavar="S",
        help="time limit for a complete answer (default: %(default)s)",
    )
    add("--tolerance", type=float, default=DEFAULT_TOLERANCE, help="tolerance of a score (default: %(default)s)")
    add(
        "--expected",
        default="",
        metavar="FILE",
        help="expected answers; learned from the server if the file is missing",
    )
    add("--seed", type=int, default=0, help="seed of everything random (default: %(default)s)")
    add("--shape", choices=SHAPES, default="ramp", help="users over time (default: %(default)s)")
    add("--steps", type=int, default=5, help="steps of a ramp (default: %(default)s)")
    add("--spike-factor", type=float, default=10.0, help="multiple of --users in a spike (default: %(default)s)")
    return actions


class Session:
    """Draws requests, checks their answers and counts them.

    Attributes:
        mix: What to send.
        book: The expected answers.
        tally: The counts.
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
        """Check a reply and count the outcome of the request.

        Returns:
            The request's kind, and its name in Locust's statistics.
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
    """Read the photos, and read or learn the expected answers.

    Args:
        options: The parsed options of `add_arguments`.
        http_url: URL of the HTTP API, to learn from.
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
    """Read the photos and how to mix them.

    Raises:
        LoadTestError: An option is wrong.
    """
    if not options.photos:
        raise LoadTestError("Expected a folder of photos, got none; name one with --photos.")
    if not 0 <= options.bad_share <= 1:
        raise LoadTestError(f"Expected a --bad-share from 0 to 1, got {options.bad_share}.")
    weights = parse_weights(options.image_mix) if options.image_mix else {}
    return ImageMix(read_photos(Path(options.photos)), weights, parse_batch_mix(options.batch_mix), options.bad_share)
