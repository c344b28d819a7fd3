"""The command `mlcls health`: whether the models of a running server answer."""

from __future__ import annotations

import argparse
import sys
from typing import Final

from mlcls.commands.options import add_repository_option

NAME: Final = "health"
SUMMARY: Final = "Check whether the models of a running server answer a test image."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "models", nargs="*", metavar="MODEL", help="models to check (default: the repository's loaded ones)"
    )
    parser.add_argument(
        "--url", default="127.0.0.1:8000", metavar="HOST:PORT", help="HTTP address of the server (default: %(default)s)"
    )
    parser.add_argument(
        "--metrics-url",
        metavar="URL",
        help="metrics of the server, which tell a busy model from one that hangs (default: port 8002 of the same host; "
        "see --metrics-port of `mlcls serve`)",
    )
    parser.add_argument(
        "--timeout", type=float, default=5.0, metavar="S", help="seconds to wait for each answer (default: %(default)s)"
    )
    add_repository_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Ask each model once, and print a line for each.

    Returns:
        0 if each model answers, or is busy answering others; else 1.

    Raises:
        ServerError: No model was named, and the server has no model of the repository loaded.
    """
    from mlcls.errors import ServerError
    from mlcls.repository.models import Repository
    from mlcls.server.health_probe import HealthProbe
    from mlcls.server.http_api import HttpApi

    if not 0.1 <= arguments.timeout <= 3600:
        raise ServerError(f"Expected --timeout 0.1 to 3600, in seconds, got {arguments.timeout}.")
    url = arguments.url.removeprefix("http://").rstrip("/")
    host = url.rpartition(":")[0] or url
    api = HttpApi(url)
    models = arguments.models
    if not models:
        known = Repository(arguments.repository).models()
        models = [name for name in known if api.is_ready(name, timeout_s=arguments.timeout)]
    if not models:
        raise ServerError(
            f"The server at {url} does not answer, or has no model of {arguments.repository} loaded; name the models "
            f"to check: mlcls health MODEL."
        )
    probe = HealthProbe(url, arguments.metrics_url or f"http://{host}:8002/metrics", arguments.timeout)
    failed = 0
    for health in map(probe.ask, models):
        fails = health.verdict == "fails"
        failed |= fails
        print(health, file=sys.stderr if fails else sys.stdout, flush=True)
        if health.full_batch_s > arguments.timeout:
            print(
                f"A full batch takes {health.model} {health.full_batch_s:.0f} s: to tell a slow model from one that "
                f"hangs, use a --timeout above that.",
                file=sys.stderr,
            )
    return failed
