"""The `mlcls-client` command; `mlcls_client.cli.predict` has its exit codes."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Final

from mlcls_client.base.text import visible
from mlcls_client.cli.arguments import (
    add_request_arguments,
    add_server_arguments,
    open_model,
    parse_seconds,
    read_server_arguments,
)
from mlcls_client.cli.output import EXIT_OK, EXIT_SERVER, EXIT_USAGE, print_line, with_exit_code
from mlcls_client.cli.predict import SUMMARY as PREDICT_SUMMARY
from mlcls_client.cli.predict import add_predict_arguments, run_predict
from mlcls_client.server_state import list_models, read_health
from mlcls_client.transport.connection import DEFAULT_RETRIES

_WAIT_TIMEOUT_S: Final = 60.0
# Per readiness call: a server that accepts connections but does not answer must not use up the whole waiting time.
_READINESS_TIMEOUT_S: Final = 5.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, or the process's own; return the exit code."""
    return with_exit_code(_run, argv)


def _run(argv: Sequence[str] | None) -> int:
    try:
        args = _make_parser().parse_args(argv)
    except SystemExit as stop:  # argparse ends --help with 0 and wrong usage with 2
        return stop.code if isinstance(stop.code, int) else EXIT_USAGE
    exit_code: int = args.run(args)
    return exit_code


def _make_parser() -> argparse.ArgumentParser:
    from mlcls_client import __version__

    parser = argparse.ArgumentParser(
        prog="mlcls-client", description="Ask a Triton server that serves PaddleX multi-label models."
    )
    parser.add_argument("--version", action="version", version=f"mlcls-client {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(
        name: str, run: Callable[[argparse.Namespace], int], summary: str, more: str = ""
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=summary, description=f"{summary} {more}".strip())
        command.set_defaults(run=run)
        return command

    add_predict_arguments(add("predict", run_predict, PREDICT_SUMMARY))

    wait = add("wait", _wait, "Wait until a model is ready.", "Exit 0 if it is, 3 if not in time.")
    wait.add_argument("model", metavar="MODEL", help="name of the model, e.g. PP-LCNet_x1_0_ML")
    add_server_arguments(wait)
    seconds = "how long to wait, in seconds (default: %(default)g)"
    wait.add_argument("--timeout", type=parse_seconds, default=_WAIT_TIMEOUT_S, metavar="S", help=seconds)

    closed = "If the server closes its list, as mlcls serve does to clients without --admin-key, list the loaded ones."
    models = add("models", _models, "List the models of a server.", closed)
    models.add_argument("--all", action="store_true", help="also list the steps of ensembles and all other models")
    add_server_arguments(models)
    add_request_arguments(models, DEFAULT_RETRIES)

    ready = "Check whether a server and the given models are ready."
    health = add("health", _health, ready, "Exit 0 if all are, 3 if not.")
    health.add_argument("model", metavar="MODEL", nargs="*", help="name of a model, e.g. PP-LCNet_x1_0_ML")
    add_server_arguments(health)
    add_request_arguments(health, 0)
    return parser


def _wait(args: argparse.Namespace) -> int:
    with open_model(args, min(args.timeout, _READINESS_TIMEOUT_S)) as model:
        model.wait_until_ready(args.timeout)
    return EXIT_OK


def _models(args: argparse.Namespace) -> int:
    server = read_server_arguments(args)
    found = list_models(args.url, args.protocol, args.timeout, with_steps=args.all, retries=args.retries, **server)
    rows = [("model", "version", "state"), *((model.name, model.version, model.state) for model in found)]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for name, version, state in rows:
        print_line(visible(f"{name:{widths[0]}}  {version:{widths[1]}}  {state}"))
    return EXIT_OK


def _health(args: argparse.Namespace) -> int:
    server = read_server_arguments(args)
    del server["admin_key"]
    health = read_health(args.url, args.protocol, args.timeout, models=args.model, retries=args.retries, **server)
    print_line(visible(f"{health.name} {health.version}: {'ready' if health.ready else 'live, not ready'}"))
    for name, ready in health.models.items():
        print_line(f"{name}: {'ready' if ready else 'not ready, or not on this server'}")
    return EXIT_OK if health.ready and all(health.models.values()) else EXIT_SERVER
