"""The options that `python -m benchmarks.load` and the locustfile share, and what they choose."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any, Final

from benchmarks.load.answers import DEFAULT_TOLERANCE
from benchmarks.load.images import ImageMix, LoadTestError, parse_batch_mix, parse_weights, read_photos

SHAPES: Final = ("ramp", "soak", "spike")


def add_arguments(parser: Any) -> list[argparse.Action]:
    """Add the shared options to a parser of argparse or Locust, and return them."""
    add = parser.add_argument
    return [
        add("--model", default="PP-LCNet_x1_0_ML", help="the served ensemble (default: %(default)s)"),
        add("--photos", default="", metavar="DIR", help="photos; each subfolder is a size class"),
        add("--image-mix", default="", metavar="NAME=WEIGHT,...", help="weight of each size class; default: equal"),
        add("--batch-mix", default="1=8,4=1,8=1", metavar="SIZE=WEIGHT,...", help="images per request (%(default)s)"),
        add("--bad-share", type=float, default=0.05, help="share of files that must be refused (default: %(default)s)"),
        add("--threshold", default="", help="threshold of all requests; default: the model's own"),
        add("--think-time", type=float, default=0.0, metavar="S", help="mean pause of a user; default: none"),
        add("--deadline", type=float, default=120.0, metavar="S", help="limit of a complete answer (%(default)s)"),
        add("--tolerance", type=float, default=DEFAULT_TOLERANCE, help="tolerance of a score (default: %(default)s)"),
        add("--expected", default="", metavar="FILE", help="expected answers; learned from the server if missing"),
        add("--seed", type=int, default=0, help="seed of everything random (default: %(default)s)"),
        add("--shape", choices=SHAPES, default="ramp", help="users over time (default: %(default)s)"),
        add("--steps", type=int, default=5, help="steps of a ramp (default: %(default)s)"),
        add("--spike-factor", type=float, default=10.0, help="multiple of --users in a spike (default: %(default)s)"),
    ]


def open_mix(options: Any) -> ImageMix:
    """Read the photos and how to mix them.

    Raises:
        LoadTestError: An option is wrong.
    """
    if not options.photos:
        raise LoadTestError("Expected a folder of photos, got none; name one with --photos.")
    weights = parse_weights(options.image_mix) if options.image_mix else {}
    return ImageMix(read_photos(Path(options.photos)), weights, parse_batch_mix(options.batch_mix), options.bad_share)


def choose_users(options: Any, users: int, elapsed: float) -> int | None:
    """Return the number of users of a shape at a moment, or None once the test is over.

    Args:
        options: The parsed options.
        users: Users of the last step of a ramp, of a soak, and around the spike.
        elapsed: Share of the run time that is over.
    """
    steps: int = options.steps
    factor: float = options.spike_factor
    if elapsed >= 1:
        return None
    if options.shape == "ramp":
        return math.ceil(users * (int(elapsed * steps) + 1) / steps)
    if options.shape == "spike" and 1 / 3 <= elapsed < 2 / 3:
        return math.ceil(users * factor)
    return users
