"""The command `mlcls serve`: start a server from the options, and run it until a signal comes."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Final

from mlcls.commands.options import add_repository_option
from mlcls.errors import MlclsError, ServerError
from mlcls.repository.settings import TARGETS
from mlcls.server.logs import LOG_FORMAT_VARIABLE, LOG_FORMATS, LogFormat, read_log_format
from mlcls.server.options import DEFAULT_TRACE_RATE

if TYPE_CHECKING:
    from mlcls.server.logs import Announcements
    from mlcls.server.options import ServerOptions
    from mlcls.server.process import TritonServer
    from mlcls.server.supervision import WatchSettings

NAME: Final = "serve"
SUMMARY: Final = "Serve models of the repository with Triton."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("models", nargs="+", metavar="MODEL", help="name of an imported model")
    parser.add_argument("--target", choices=TARGETS, default="embedded", help="engine to run (default: %(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    for api, name, port in (("HTTP", "http", 8000), ("gRPC", "grpc", 8001), ("metrics", "metrics", 8002)):
        parser.add_argument(f"--{name}-port", type=int, default=port, help=f"{api} port (default: %(default)s)")
    parser.add_argument(
        "--ready-timeout",
        type=float,
        default=300.0,
        metavar="S",
        help="seconds that the models may take to load (default: %(default)s)",
    )
    parser.add_argument(
        "--poll",
        type=float,
        metavar="S",
        help="check the repository every S seconds and switch to its active version",
    )
    _add_watch_options(parser)
    _add_log_options(parser)
    parser.add_argument(
        "--tritonserver",
        type=Path,
        metavar="DIR",
        help="Triton to use instead of the embedded one, e.g. /opt/tritonserver in NVIDIA's container",
    )
    add_repository_option(parser)


def _add_log_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("observability", "See docs/how-to/observability.md.")
    group.add_argument("--log-file", type=Path, metavar="FILE", help="file for Triton's full log; - prints it")
    group.add_argument(
        "--log-format",
        choices=LOG_FORMATS,
        help=f"log format; json writes one object per line (default: ${LOG_FORMAT_VARIABLE} or text)",
    )
    group.add_argument(
        "--trace-url", metavar="URL", help="OTLP receiver for traces of requests, e.g. http://HOST:4318/v1/traces"
    )
    group.add_argument(
        "--trace-rate",
        type=int,
        default=DEFAULT_TRACE_RATE,
        metavar="N",
        help="trace one request in N (default: %(default)s)",
    )


def _add_watch_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "supervision",
        "If a part of the server dies, hangs or does not answer, the server is stopped and the reason printed.",
    )
    add = group.add_argument
    add("--supervise", action="store_true", help="restart the server after a fault or an unexpected end")
    add(
        "--max-restarts",
        type=int,
        default=10,
        metavar="N",
        help="give up after N restarts within --restart-window (default: %(default)s)",
    )
    add(
        "--restart-window",
        type=float,
        default=600.0,
        metavar="S",
        help="seconds in which --max-restarts are counted (default: %(default)s)",
    )
    add(
        "--restart-pause",
        type=float,
        default=0.5,
        metavar="S",
        help="seconds before the first restart, doubled with each fault up to 30 (default: %(default)s)",
    )
    add(
        "--hang-timeout",
        type=float,
        default=60.0,
        metavar="S",
        help="seconds that one request or batch may take in a Python step (default: %(default)s)",
    )
    add(
        "--probe-interval",
        type=float,
        default=10.0,
        metavar="S",
        help="send each model a test image every S seconds; 0 disables it (default: %(default)s)",
    )
    add(
        "--probe-timeout",
        type=float,
        default=10.0,
        metavar="S",
        help="seconds that the answer to a test image may take (default: %(default)s)",
    )
    add(
        "--drain-timeout",
        type=float,
        default=30.0,
        metavar="S",
        help="seconds that requests in flight get to finish when the server stops (default: %(default)s)",
    )


class _StopRequested(BaseException):
    """SIGINT or SIGTERM came; no `except Exception` may swallow it."""


def run(arguments: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM.

    Returns:
        0 after a clean stop.

    Raises:
        RepositoryError: A model cannot be served.
        ServerError: The server cannot start; without `--supervise`: it ended unexpectedly, or is unhealthy.
        RestartsExhaustedError: It was restarted too often.
    """
    from mlcls.server.logs import Announcements

    log_format = read_log_format(arguments.log_format)
    announcements = Announcements(log_format)
    try:
        return _run(arguments, log_format, announcements)
    except (MlclsError, OSError) as error:
        if log_format == "text":
            raise
        announcements.say(str(error), "ERROR")
        return getattr(error, "exit_code", MlclsError.exit_code)


def _run(arguments: argparse.Namespace, log_format: LogFormat, announcements: Announcements) -> int:
    from mlcls.server.installation import embedded_installation, system_installation
    from mlcls.server.options import CLOSED_APIS, CLOSED_APIS_IN_PRODUCTION, ServerOptions, TraceSettings
    from mlcls.server.process import TritonServer
    from mlcls.server.supervision import Restarts, RestartSettings, WatchSettings, keep_serving

    if arguments.poll is not None and not 0.1 <= arguments.poll <= 3600:
        raise ServerError(f"Expected --poll 0.1 to 3600, in seconds, got {arguments.poll}.")
    if arguments.tritonserver is None:
        if arguments.host not in ("127.0.0.1", "localhost"):
            raise ServerError(
                f"The embedded tritonserver is older than the security fixes of 2025 and 2026 and listens on this "
                f"machine only; expected --host 127.0.0.1, got {arguments.host}. Use the container for other addresses."
            )
        installation = embedded_installation()
    else:
        installation = system_installation(arguments.tritonserver)
    if not 0 <= arguments.drain_timeout <= 3600:
        raise ServerError(f"Expected --drain-timeout 0 to 3600, in seconds, got {arguments.drain_timeout}.")
    watching = WatchSettings(arguments.hang_timeout, arguments.probe_interval, arguments.probe_timeout)
    restarting = RestartSettings(arguments.max_restarts, arguments.restart_window, arguments.restart_pause)
    options = ServerOptions(
        repository=arguments.repository,
        models=tuple(dict.fromkeys(arguments.models)),
        target=arguments.target,
        host=arguments.host,
        http_port=arguments.http_port,
        grpc_port=arguments.grpc_port,
        metrics_port=arguments.metrics_port,
        ready_timeout_s=arguments.ready_timeout,
        log_path=arguments.log_file,
        closed_apis=CLOSED_APIS if arguments.tritonserver is None else CLOSED_APIS_IN_PRODUCTION,
        drain_timeout_s=arguments.drain_timeout,
        log_format=log_format,
        trace=None if arguments.trace_url is None else TraceSettings(arguments.trace_url, arguments.trace_rate),
    )

    stop_requested = False

    def check_stop() -> None:
        """Stop if the exception of `request_stop` was lost: Python drops what a signal handler raises during a fork."""
        if stop_requested:
            raise _StopRequested

    def serve(server: TritonServer) -> None:
        check_stop()
        announcements.say(
            f"Ready: {', '.join(options.models)} at grpc {server.grpc_url}, http {server.http_url}, metrics "
            f"{server.metrics_url}. Stop with Ctrl-C."
        )
        _serve(server, watching, arguments.poll, announcements, check_stop)

    def request_stop(_signum: int, _frame: FrameType | None) -> None:
        nonlocal stop_requested
        stop_requested = True
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, signal.SIG_IGN)  # the stop itself must not be interrupted
        raise _StopRequested

    try:
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, request_stop)
        announcements.say(f"Loading {', '.join(options.models)} ...")
        _warn_about_cores(options, announcements)
        keep_serving(
            lambda: TritonServer(options, installation),
            serve,
            Restarts(restarting) if arguments.supervise else None,
            announcements.warn_now,
        )
    except _StopRequested:
        announcements.say("Stopped.")
    return 0


def _warn_about_cores(options: ServerOptions, announcements: Announcements) -> None:
    """Warn of models whose settings were tuned for another number of cores."""
    from mlcls.base.machine import read_cores
    from mlcls.repository.models import Repository

    repository = Repository(options.repository)
    for name in options.models:
        mismatch = repository.settings(name).describe_mismatch(options.target, read_cores())
        if mismatch is not None:
            remedy = f"Tune it here: mlcls tune {name} --target {options.target}"
            announcements.say(f"Warning: {name}: {mismatch}. {remedy}", "WARNING")


def _serve(
    server: TritonServer,
    watching: WatchSettings,
    poll_s: float | None,
    announcements: Announcements,
    check_stop: Callable[[], None],
) -> None:
    """Serve until there is a fault; with an interval, follow the repository's active versions."""
    from mlcls.server.supervision import watch

    if poll_s is None:
        watch(server, watching, check_stop)
    else:
        from mlcls.releases.follower import following

        with following(server, poll_s, announcements.say) as check_follower:

            def check() -> None:
                check_stop()
                check_follower()

            watch(server, watching, check)
