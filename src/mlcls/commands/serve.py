"""The command `mlcls serve`: from its options to a server that runs until a signal comes."""

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
SUMMARY: Final = "Serve models of the repository with a tritonserver."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("models", nargs="+", metavar="MODEL", help="name of an imported model")
    parser.add_argument("--target", choices=TARGETS, default="embedded", help="engine (default: %(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--http-port", type=int, default=8000, help="default: %(default)s")
    parser.add_argument("--grpc-port", type=int, default=8001, help="default: %(default)s")
    parser.add_argument("--metrics-port", type=int, default=8002, help="default: %(default)s")
    parser.add_argument("--ready-timeout", type=float, default=300.0, metavar="S", help="default: %(default)s")
    parser.add_argument(
        "--poll",
        type=float,
        metavar="S",
        help="look at the repository every S seconds and switch to the version that is active there",
    )
    _add_watch_options(parser)
    _add_log_options(parser)
    parser.add_argument(
        "--tritonserver",
        type=Path,
        metavar="DIR",
        help="use this Triton, /opt/tritonserver in NVIDIA's container, instead of the embedded one",
    )
    add_repository_option(parser)


def _add_log_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("observing", "docs/how-to/observability.md has the fields, and what is measured.")
    group.add_argument("--log-file", type=Path, metavar="FILE", help="keep Triton's whole log here; - prints it")
    group.add_argument(
        "--log-format",
        choices=LOG_FORMATS,
        help=f"text, or one JSON object a line, of mlcls and of Triton (default: ${LOG_FORMAT_VARIABLE}, or text)",
    )
    group.add_argument(
        "--trace-url", metavar="URL", help="send spans of requests to this OTLP receiver: http://HOST:4318/v1/traces"
    )
    group.add_argument(
        "--trace-rate",
        type=int,
        default=DEFAULT_TRACE_RATE,
        metavar="N",
        help="trace one request in N; 1 for all (default: %(default)s)",
    )


def _add_watch_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "watching", "A server of which a part was killed, hangs or does not answer is ended, with the reason."
    )
    add = group.add_argument
    add("--supervise", action="store_true", help="and started again, as is one that ended by itself")
    add("--max-restarts", type=int, default=10, metavar="N", help="give up after so many (default: %(default)s)")
    add("--restart-window", type=float, default=600.0, metavar="S", help="within so long (default: %(default)s)")
    add(
        "--restart-pause",
        type=float,
        default=0.5,
        metavar="S",
        help="before the first restart; it doubles from fault to fault up to 30 s (default: %(default)s)",
    )
    add(
        "--hang-timeout",
        type=float,
        default=60.0,
        metavar="S",
        help="how long one request or batch may take in a step that runs in Python (default: %(default)s)",
    )
    add(
        "--probe-interval",
        type=float,
        default=10.0,
        metavar="S",
        help="ask each model for an answer every S seconds; 0 for never (default: %(default)s)",
    )
    add("--probe-timeout", type=float, default=10.0, metavar="S", help="time for it (default: %(default)s)")
    add(
        "--drain-timeout",
        type=float,
        default=30.0,
        metavar="S",
        help="how long requests in flight may take once the server is told to stop (default: %(default)s)",
    )


class _StopRequested(BaseException):
    """SIGINT or SIGTERM came; no `except Exception` may swallow it."""


def run(arguments: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM.

    Returns:
        0 after a clean stop.

    Raises:
        RepositoryError: A model cannot be served.
        ServerError: The server cannot start; without `--supervise`: it ended by itself, or is not well.
        RestartsExhaustedError: It was started again too often.
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
    """Tell of models whose settings were measured with another number of cores."""
    from mlcls.base.machine import read_cores
    from mlcls.repository.settings import read_settings

    for name in options.models:
        mismatch = read_settings(options.repository, name).describe_mismatch(options.target, read_cores())
        if mismatch is not None:
            remedy = f"Measure here: mlcls tune {name} --target {options.target}"
            announcements.say(f"Warning: {name}: {mismatch}. {remedy}", "WARNING")


def _serve(
    server: TritonServer,
    watching: WatchSettings,
    poll_s: float | None,
    announcements: Announcements,
    check_stop: Callable[[], None],
) -> None:
    """Serve until something is wrong, the versions that are active in the repository where it is to be followed."""
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
