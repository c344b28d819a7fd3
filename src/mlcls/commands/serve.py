"""The command `mlcls serve`: start a server from the options, and run it until a signal comes."""

from __future__ import annotations

import argparse
import signal
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Final, NamedTuple

from mlcls.base.files import describe_os_error
from mlcls.commands.options import add_repository_option
from mlcls.errors import ConfigError, MlclsError, ServerError
from mlcls.repository.settings import TARGETS
from mlcls.server.logs import LOG_FORMAT_VARIABLE, LOG_FORMATS, Announcements, read_log_format
from mlcls.server.options import CLOSED_APIS, CLOSED_APIS_IN_PRODUCTION, ServerOptions

if TYPE_CHECKING:
    from mlcls.server.process import TritonServer

NAME: Final = "serve"
SUMMARY: Final = "Serve models of the repository with Triton."

_STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Number(NamedTuple):
    """An option that takes a number within limits, by default of seconds."""

    option: str
    default: float | None
    least: float
    most: float
    help: str
    metavar: str = "S"

    @property
    def dest(self) -> str:
        """Name among the parsed arguments, with the unit."""
        return self.option.removeprefix("--").replace("-", "_") + ("_s" if self.metavar == "S" else "")


_LOADING: Final = (
    _Number("--ready-timeout", ServerOptions.ready_timeout_s, 0, 86_400, "seconds that the models may take to load"),
    _Number("--poll", None, 0.1, 3600, "check the repository every S seconds and switch to its active version"),
)
_SUPERVISION: Final = (
    _Number("--max-restarts", 10, 1, 1_000_000, "give up after N restarts within --restart-window", "N"),
    _Number("--restart-window", 600.0, 1, 604_800, "seconds in which --max-restarts are counted"),
    _Number("--restart-pause", 0.5, 0, 30, "seconds before the first restart, doubled with each fault up to 30"),
    _Number("--hang-timeout", 60.0, 0.5, 86_400, "seconds that one request or batch may take in a Python step"),
    _Number("--probe-interval", 10.0, 0, 3600, "send each model a test image every S seconds; 0 disables it"),
    _Number("--probe-timeout", 10.0, 0.1, 3600, "seconds that the answer to a test image may take"),
    _Number(
        "--drain-timeout",
        ServerOptions.drain_timeout_s,
        0,
        3600,
        "seconds that requests in flight get to finish when the server stops",
    ),
)
_TRACING: Final = (_Number("--trace-rate", ServerOptions.trace_rate, 1, 1_000_000, "trace one request in N", "N"),)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("models", nargs="+", metavar="MODEL", help="name of an imported model")
    parser.add_argument("--target", choices=TARGETS, default="embedded", help="engine to run (default: %(default)s)")
    parser.add_argument("--host", default=ServerOptions.host, help="address to listen on (default: %(default)s)")
    for api in ("HTTP", "gRPC", "metrics"):
        port = getattr(ServerOptions, f"{api.lower()}_port")
        parser.add_argument(f"--{api.lower()}-port", type=int, default=port, help=f"{api} port (default: %(default)s)")
    _add_numbers(parser, _LOADING)
    parser.add_argument(
        "--tritonserver",
        type=Path,
        metavar="DIR",
        help="Triton to use instead of the embedded one, e.g. /opt/tritonserver in NVIDIA's container",
    )
    add_repository_option(parser)
    group = parser.add_argument_group(
        "supervision",
        "If a part of the server dies, hangs or does not answer, the server is stopped and the reason printed.",
    )
    group.add_argument("--supervise", action="store_true", help="restart the server after a fault or an unexpected end")
    _add_numbers(group, _SUPERVISION)
    group = parser.add_argument_group("observability", "See docs/how-to/observability.md.")
    group.add_argument(
        "--log-file", dest="log_path", type=Path, metavar="FILE", help="file for Triton's full log; - prints it"
    )
    group.add_argument(
        "--log-format",
        choices=LOG_FORMATS,
        help=f"log format; json writes one object per line (default: ${LOG_FORMAT_VARIABLE} or text)",
    )
    group.add_argument(
        "--trace-url", metavar="URL", help="OTLP receiver for traces of requests, e.g. http://HOST:4318/v1/traces"
    )
    _add_numbers(group, _TRACING)


def _add_numbers(group: argparse._ActionsContainer, numbers: tuple[_Number, ...]) -> None:
    for number in numbers:
        group.add_argument(
            number.option,
            dest=number.dest,
            type=int if isinstance(number.default, int) else float,
            default=number.default,
            metavar=number.metavar,
            help=number.help + ("" if number.default is None else " (default: %(default)s)"),
        )


def _check_numbers(arguments: argparse.Namespace) -> None:
    for number in (*_LOADING, *_SUPERVISION, *_TRACING):
        value = getattr(arguments, number.dest)
        if value is not None and not number.least <= value <= number.most:
            raise ConfigError(f"Expected {number.option} {number.least:g} to {number.most:.7g}, got {value:g}.")


class _StopRequested(BaseException):
    """One of `_STOP_SIGNALS` came; no `except Exception` may swallow it."""


def run(arguments: argparse.Namespace) -> int:
    """Serve until SIGINT, SIGTERM or SIGHUP.

    Returns:
        0 after a clean stop.

    Raises:
        ConfigError: An option is out of range.
        RepositoryError: A model cannot be served.
        ServerError: The server cannot start; without `--supervise`: it ended unexpectedly, or is unhealthy.
        RestartsExhaustedError: It was restarted too often.
    """
    arguments.log_format = read_log_format(arguments.log_format)
    announcements = Announcements(arguments.log_format)
    try:
        return _run(arguments, announcements)
    except (MlclsError, OSError) as error:
        if arguments.log_format == "text":
            raise
        announcements.say(describe_os_error(error) if isinstance(error, OSError) else str(error), "ERROR")
        return getattr(error, "exit_code", MlclsError.exit_code)


def _run(arguments: argparse.Namespace, announcements: Announcements) -> int:
    from mlcls.releases.follower import following
    from mlcls.server.installation import embedded_installation, system_installation
    from mlcls.server.process import TritonServer
    from mlcls.server.supervision import Restarts, keep_serving, watch

    _check_numbers(arguments)
    is_embedded = arguments.tritonserver is None
    if is_embedded and arguments.host not in ("127.0.0.1", "localhost"):
        raise ServerError(
            f"The embedded tritonserver is older than the security fixes of 2025 and 2026 and listens on this "
            f"machine only; expected --host 127.0.0.1, got {arguments.host}. Use the container for other addresses."
        )
    installation = embedded_installation() if is_embedded else system_installation(arguments.tritonserver)
    arguments.models = tuple(dict.fromkeys(arguments.models))
    given = {name: value for name, value in vars(arguments).items() if name in ServerOptions.__dataclass_fields__}
    options = ServerOptions(**given, closed_apis=CLOSED_APIS if is_embedded else CLOSED_APIS_IN_PRODUCTION)
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
        with following(server, arguments.poll_s, announcements.say) as check_follower:

            def check() -> None:
                check_stop()
                check_follower()

            watch(server, arguments.hang_timeout_s, arguments.probe_interval_s, arguments.probe_timeout_s, check)

    def request_stop(_signum: int, _frame: FrameType | None) -> None:
        nonlocal stop_requested
        stop_requested = True
        for signum in _STOP_SIGNALS:
            signal.signal(signum, signal.SIG_IGN)  # the stop itself must not be interrupted
        raise _StopRequested

    restarts = Restarts(arguments.max_restarts, arguments.restart_window_s, arguments.restart_pause_s)
    try:
        for signum in _STOP_SIGNALS:
            if signum != signal.SIGHUP or signal.getsignal(signum) != signal.SIG_IGN:  # nohup ignores it
                signal.signal(signum, request_stop)
        announcements.say(f"Loading {', '.join(options.models)} ...")
        _warn_about_cores(options, announcements)
        keep_serving(
            lambda: TritonServer(options, installation),
            serve,
            restarts if arguments.supervise else None,
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
