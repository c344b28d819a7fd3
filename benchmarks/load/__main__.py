"""Load-test a served model and check every answer: `make load-test`, or `python -m benchmarks.load`.

The test starts a server, or uses a running one, and has Locust's users ask over gRPC and HTTP; the expected answers are
learned from single requests before. Locust's report and a summary go to `output/load-test/TIME/`. The exit status is 1
if an answer was wrong or missing. Locust's own options are passed on, such as --users 32, --run-time 3600 and
--processes 4.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from signal import SIGUSR1
from typing import Final

from benchmarks.load.options import add_arguments
from benchmarks.machine import describe_machine
from benchmarks.photo_set import LOAD_MIX, LOAD_SIZES, write_photos
from benchmarks.usage import CostMeter, read_usage, total_pss_bytes
from mlcls.base.files import write_text
from mlcls.base.machine import format_machine
from mlcls.base.processes import end_with_parent
from mlcls.errors import MlclsError, ServerError
from mlcls.server.options import ServerOptions
from mlcls.server.process import TritonServer

_ROOT: Final = Path(__file__).resolve().parents[2]
_LOCUST: Final = _ROOT / ".venv-bench" / "bin" / "locust"
_WATCH_S: Final = 2.0
# Columns of Locust's CSV file in the summary.
_COLUMNS: Final = (
    "Type",
    "Name",
    "Request Count",
    "Failure Count",
    "Requests/s",
    "50%",
    "95%",
    "99%",
    "Max Response Time",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the arguments, run the test and print the summary."""
    about, _, more = __doc__.partition("\n")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.load", description=about, epilog=more, allow_abbrev=False
    )
    parser.add_argument("--repository", type=Path, default=Path("model_repository"), help="default: %(default)s")
    parser.add_argument("--url", default="", metavar="HOST:PORT", help="gRPC API of a running server")
    parser.add_argument("--http-url", default="", metavar="HOST:PORT", help="HTTP API of a running server")
    parser.add_argument("--web", action="store_true", help="serve Locust's web page on port 8089 until interrupted")
    parser.add_argument("--output", type=Path, default=Path("output") / "load-test", help="default: %(default)s")
    shared = add_arguments(parser)
    options, locust = parser.parse_known_args(arguments)
    folder = options.output.resolve() / time.strftime("%Y-%m-%d-%H%M%S")
    try:
        if not _LOCUST.exists():
            raise MlclsError(f"Expected Locust at {_LOCUST}, got nothing there; run: make .venv-bench/.installed")
        folder.mkdir(parents=True)
        with contextlib.ExitStack() as stack:
            if not options.photos:
                options.photos = stack.enter_context(tempfile.TemporaryDirectory(prefix="mlcls-load-"))
                write_photos(Path(options.photos), LOAD_SIZES, options.seed)
                options.image_mix = options.image_mix or LOAD_MIX
            options.expected = options.expected or str(folder / "expected.json")
            for name in ("photos", "expected"):  # Locust runs in the checkout's root
                setattr(options, name, Path(getattr(options, name)).resolve())
            server = stack.enter_context(_open_server(options))
            given = [f"{action.option_strings[0]}={getattr(options, action.dest)}" for action in shared]
            command = _locust_command(options, [*given, *locust], folder)
            meter = CostMeter(server, options.model) if server else None
            status, memory_mb = _run_locust(command, server)
            lines = [f"`{shlex.join(command)}`", "", format_machine(describe_machine()), "", *_read_table(folder)]
            if meter:
                lines += ["", _describe_server(meter, memory_mb)]
    except (MlclsError, OSError) as error:
        print(f"load-test: {error}", file=sys.stderr)
        return 1
    lines += ["", "FAILED: see locust_failures.csv." if status else "Passed."]
    write_text(folder / "summary.md", "\n".join(lines) + "\n")
    print("\n".join([*lines[4:], f"Written: {folder}/summary.md, locust.html, locust_*.csv"]))
    return 1 if status else 0


@contextlib.contextmanager
def _open_server(options: argparse.Namespace) -> Iterator[TritonServer | None]:
    """Start a server and set its addresses in the options, unless these name one."""
    if options.url or options.http_url:
        yield None
        return
    with TritonServer(ServerOptions.on_free_ports(options.repository, options.model)) as server:
        options.url, options.http_url = server.grpc_url, server.http_url
        yield server


def _locust_command(options: argparse.Namespace, given: Sequence[str], folder: Path) -> list[str]:
    users = [name for name, url in (("GrpcUser", options.url), ("HttpUser", options.http_url)) if url]
    return [
        str(_LOCUST), "-f", "benchmarks/load/locustfile.py", *users,
        f"--grpc-url={options.url}", f"--http-url={options.http_url}",
        *(["--autostart", "--web-host=127.0.0.1"] if options.web else ["--headless"]), "--only-summary",
        f"--csv={folder / 'locust'}", f"--html={folder / 'locust.html'}", f"--logfile={folder / 'locust.log'}",
        "--users=16", "--spawn-rate=1000", "--run-time=60", f"--stop-timeout={options.deadline + 5:.0f}", *given,
    ]  # fmt: skip


def _run_locust(command: Sequence[str], server: TritonServer | None) -> tuple[int, list[float]]:
    """Run Locust to its end; return its exit status and samples of the server's memory (PSS) in MB.

    An interrupt ends the test early and waits for the outstanding answers; the second one ends Locust.
    """
    memory_mb: list[float] = []
    process = subprocess.Popen(
        command,
        cwd=_ROOT,
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # an interrupt at the terminal must not reach it: this process ends it gracefully
        preexec_fn=end_with_parent,
    )
    interrupted = False
    try:
        while process.poll() is None:
            try:
                if server is not None:
                    memory_mb.append(total_pss_bytes(read_usage(server.pid)) / 1e6)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_WATCH_S)
            except KeyboardInterrupt:
                if interrupted:
                    raise
                interrupted = True
                process.send_signal(SIGUSR1)  # the locustfile's END_SIGNAL
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    return process.returncode, memory_mb


def _describe_server(meter: CostMeter, memory_mb: Sequence[float]) -> str:
    try:
        cost = meter.read()
    except ServerError as error:
        return f"Server: gone; {error}"
    return (
        f"Server: {cost.images} images answered by its own count, {cost.total_core_ms:.1f} core-ms per image; "
        f"{memory_mb[0]:.0f} MB at the start, {max(memory_mb):.0f} MB at most, {memory_mb[-1]:.0f} MB at the end (PSS)."
    )


def _read_table(folder: Path) -> list[str]:
    """Return Locust's statistics as a Markdown table; latencies are in milliseconds.

    Raises:
        MlclsError: Locust wrote none.
    """
    path = folder / "locust_stats.csv"
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [[_round(row[name]) for name in _COLUMNS] for row in csv.DictReader(file)]
    except (OSError, KeyError) as error:
        raise MlclsError(
            f"Expected Locust's statistics in {path}, got {error!r}; see {folder / 'locust.log'}."
        ) from None
    return [f"| {' | '.join(row)} |" for row in (_COLUMNS, ["---"] * len(_COLUMNS), *rows)]


def _round(text: str) -> str:
    return f"{float(text):.1f}" if text.replace(".", "", 1).isdigit() and "." in text else text


if __name__ == "__main__":
    sys.exit(main())
