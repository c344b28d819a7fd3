"""The options of the load test: for locust's command line and page, and for `python -m benchmarks.load.load_test`."""

from __future__ import annotations

import argparse
from typing import Any, Final

from benchmarks.load.locustfiles.answers import DEFAULT_TOLERANCE

SHAPES: Final = ("ramp", "soak", "spike")


def add_arguments(parser: Any) -> list[argparse.Action]:
    """Add the options to an argparse or a locust parser, and return them."""
    actions: list[argparse.Action] = []

    def add(name: str, **settings: Any) -> None:
        actions.append(parser.add_argument(name, **settings))

    add("--model", default="PP-LCNet_x1_0_ML", help="the served ensemble (default: %(default)s)")
    add("--photos", default="", metavar="DIR", help="photos; each folder in it is a size class")
    add("--image-mix", default="", metavar="NAME=WEIGHT,...", help="how often each size class; default: all alike")
    add("--batch-mix", default="1=8,4=1,8=1", metavar="SIZE=WEIGHT,...", help="images a request (default: %(default)s)")
    add("--bad-share", type=float, default=0.05, help="share of files that must be refused (default: %(default)s)")
    add("--threshold", default="", help="request parameter of all requests; default: the model's own")
    add("--think-time", type=float, default=0.0, metavar="S", help="mean pause of a user; default: none")
    add("--deadline", type=float, default=120.0, metavar="S", help="for a whole answer (default: %(default)s)")
    add("--tolerance", type=float, default=DEFAULT_TOLERANCE, help="of a score (default: %(default)s)")
    add("--expected", default="", metavar="FILE", help="expected answers; learnt from the server where it is missing")
    add("--seed", type=int, default=0, help="of what is sent (default: %(default)s)")
    add("--shape", choices=SHAPES, default="ramp", help="users over time (default: %(default)s)")
    add("--steps", type=int, default=5, help="of a ramp (default: %(default)s)")
    add("--spike-factor", type=float, default=10.0, help="users in a spike (default: %(default)s times)")
    return actions
