"""Load-test a served model and check every answer: `make load-test`, or `python -m benchmarks.load`.

The test starts a server, or uses a running one, learns the answers from single requests, and has Locust's users ask
over gRPC and HTTP. It writes Locust's report, a summary and curves to `output/load-test/TIME/`. The exit status is 1 if
an answer was wrong or missing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from tqdm import tqdm

from benchmarks.load.locustfiles import triton_grpc, triton_http
from benchmarks.load.locustfiles.answers import AnswerBook, learn_answers, read_answers, write_answers
from benchmarks.load.locustfiles.errors import LoadTestError
from benchmarks.load.locustfiles.outcomes import Tally
from benchmarks.load.locustfiles.reply import Reply
from benchmarks.load.locustfiles.session import add_arguments, open_mix
from benchmarks.load.report import PROTOCOLS, UsageSample, draw_load, format_table, summarize
from benchmarks.machine import describe_machine
from benchmarks.photo_set import IMAGE_MIX, write_size_classes
from benchmarks.usage import cpu_since, read_usage, total_pss_bytes
from mlcls.base.files import write_bytes, write_text
from mlcls.base.processes import end_with_parent
from mlcls.errors import MlclsError
from mlcls.server.options import ServerOptions
from mlcls.server.process import TritonServer

_ROOT: Final = Path(__file__).resolve().parents[2]
_LOCUST: Final = _ROOT / ".venv-bench" / "bin" / "locust"
_LOCUSTFILES: Final = {name: Path("benchmarks") / "load" / "locustfiles" / f"{name}_user.py" for name in PROTOCOLS}

# `locust_events.END_SIGNAL`, which cannot be imported without locust.
_END_SIGNAL: Final = signal.SIGUSR1

# Most points of a curve.
_MAX_BINS: Final = 600


class TargetServer:
    """A running server, started here or elsewhere.

    Attributes:
        grpc_url: `host:port`, or empty.
        http_url: `http://host:port`, or empty.
        server: The server, if it was started here.
    """

    def __init__(self, grpc_url: str, http_url: str, server: TritonServer | None = None) -> None:
        self.grpc_url = grpc_url
        self.http_url = http_url
        self.server = server

    def count_answers(self, model: str) -> int | None:
        """Return how many requests the server has answered; None if it was not started here, or is dead.

        Failed ones are left out: Triton 2.51 counts a failed request of an ensemble twice.
        """
        if self.server is None:
            return None
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy cannot reach this machine
        try:
            with opener.open(self.server.metrics_url, timeout=10) as response:
                lines = response.read().decode().splitlines()
        except OSError:
            return None
        name = f'nv_inference_request_success{{model="{model}"'
        return sum(int(float(line.rsplit(" ", 1)[1])) for line in lines if line.startswith(name))


class _UsageWatch:
    """Samples what a server's processes use."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._time_s, self._usage = time.monotonic(), read_usage(pid)
        self.samples: list[UsageSample] = []

    def sample(self) -> None:
        now_s, usage = time.monotonic(), read_usage(self._pid)
        cores = sum(cpu_since(self._usage, usage).values()) / (now_s - self._time_s)
        self.samples.append(UsageSample(time.time(), total_pss_bytes(usage), cores))
        self._time_s, self._usage = now_s, usage


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the arguments, run the test and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=__doc__.splitlines()[0])
    parser.add_argument("--repository", type=Path, default=Path("model_repository"), help="default: %(default)s")
    parser.add_argument("--url", default="", metavar="HOST:PORT", help="gRPC API of a running server")
    parser.add_argument("--http-url", default="", metavar="URL", help="HTTP API of a running server")
    parser.add_argument("--users", type=int, default=16, help="users of the shape (default: %(default)s)")
    parser.add_argument("--spawn-rate", type=float, default=0.0, help="users per second; default: all at once")
    parser.add_argument("--run-time", type=float, default=60.0, metavar="S", help="default: %(default)s")
    parser.add_argument("--processes", type=int, default=0, help="Locust workers; default: one process")
    parser.add_argument("--remote-workers", type=int, default=0, help="workers on other machines to wait for")
    parser.add_argument("--bind", default="127.0.0.1", metavar="HOST", help="address where they reach Locust's master")
    parser.add_argument("--web", action="store_true", help="serve Locust's web page until interrupted")
    parser.add_argument("--web-port", type=int, default=8089, help="default: %(default)s")
    parser.add_argument("--output", type=Path, default=Path("output") / "load-test", help="default: %(default)s")
    shared = add_arguments(parser)
    options = parser.parse_args(arguments)
    try:
        if not _LOCUST.exists():
            raise LoadTestError(f"Expected Locust at {_LOCUST}, got nothing there; run: make .venv-bench/.installed")
        folder = options.output / time.strftime("%Y-%m-%d-%H%M%S")
        folder.mkdir(parents=True)
        return run_load_test(options, shared, folder)
    except (MlclsError, LoadTestError, OSError) as error:
        print(f"load-test: {error}", file=sys.stderr)
        return 1


def run_load_test(options: argparse.Namespace, shared: Sequence[argparse.Action], folder: Path) -> int:
    """Run one test and write its results.

    Args:
        options: The parsed options.
        shared: The options that Locust takes as well.
        folder: Where the files go.

    Returns:
        0, or 1 if an answer was wrong or missing.

    Raises:
        LoadTestError: An option is wrong, or Locust failed.
        MlclsError: The server cannot start.
    """
    with contextlib.ExitStack() as stack:
        if not options.photos:
            options.photos = stack.enter_context(tempfile.TemporaryDirectory(prefix="mlcls-load-"))
            write_size_classes(Path(options.photos), options.seed)
            options.image_mix = options.image_mix or IMAGE_MIX
        served = stack.enter_context(_open_server(options))
        book = _expect(options, served, folder)
        if book.alike:
            print(f"{book.alike} pairs of photos have answers too similar to detect a swap", file=sys.stderr)
        bin_s = max(1.0, math.ceil(options.run_time / _MAX_BINS))
        before = served.count_answers(options.model)
        usage = _run_locust(_locust_command(options, shared, served, folder, bin_s), options, served, folder, bin_s)
        after = served.count_answers(options.model)
    try:
        outcomes = json.loads((folder / "outcomes.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise LoadTestError(f"Expected counts from Locust, got none ({error}); see {folder / 'locust.log'}.") from None
    tally = Tally(bin_s)
    tally.add(outcomes)
    server_answers = None if before is None or after is None else after - before
    summary = summarize(tally, outcomes["users"], usage, server_answers)
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    report = {"machine": describe_machine(), "options": settings, "alike_photos": book.alike, **summary}
    write_text(folder / "summary.json", json.dumps(report, ensure_ascii=False, indent=1) + "\n")
    title = f"{options.model}, {options.shape}, {options.users} users: {'all right' if summary['fit'] else 'FAULTS'}"
    write_bytes(folder / "curves.png", draw_load(summary["timeline"], title))
    print(format_table(summary))
    for text in tally.details[:5]:
        print(f"  {text}")
    print(f"Written: {folder}/summary.json, curves.png, locust.html, locust_*.csv")
    return 0 if summary["fit"] else 1


@contextlib.contextmanager
def _open_server(options: argparse.Namespace) -> Iterator[TargetServer]:
    """Start a server unless the options name one."""
    if options.url or options.http_url:
        http_url = (
            options.http_url if "://" in options.http_url or not options.http_url else f"http://{options.http_url}"
        )
        yield TargetServer(options.url, http_url.rstrip("/"))
        return
    with TritonServer(ServerOptions.on_free_ports(options.repository, options.model)) as server:
        yield TargetServer(server.grpc_url, f"http://{server.http_url}", server)


def _expect(options: argparse.Namespace, served: TargetServer, folder: Path) -> AnswerBook:
    """Return the expected answers: read from the file in the options if it exists, else learned and written."""
    photos = open_mix(options).good
    if options.expected and Path(options.expected).exists():
        return read_answers(Path(options.expected), photos, options.tolerance)
    options.expected = options.expected or str(folder / "expected.json")

    def ask(images: Sequence[bytes]) -> Reply:
        threshold = options.threshold or None
        if served.grpc_url:
            return triton_grpc.ask(served.grpc_url, options.model, images, threshold, options.deadline)
        return triton_http.ask(served.http_url, options.model, images, threshold, options.deadline)

    book = learn_answers(ask, photos, options.tolerance)
    write_answers(Path(options.expected), book)
    return book


def _locust_command(
    options: argparse.Namespace, shared: Sequence[argparse.Action], served: TargetServer, folder: Path, bin_s: float
) -> list[str]:
    urls = {"grpc": served.grpc_url, "http": served.http_url}
    command = [str(_LOCUST), "-f", ",".join(str(_LOCUSTFILES[name]) for name, url in urls.items() if url)]
    for action in shared:
        value = getattr(options, action.dest)
        if action.dest in ("photos", "expected"):
            value = Path(value).resolve()
        command.append(f"{action.option_strings[0]}={value}")
    out = folder.resolve()
    command += [f"--grpc-url={served.grpc_url}", f"--http-url={served.http_url}", f"--bin={bin_s}"]
    if options.remote_workers:
        print(f"On the other machines: {shlex.join(command)} --worker --master-host={options.bind}", flush=True)
        command += ["--master", f"--master-bind-host={options.bind}", f"--expect-workers={options.remote_workers}"]
    elif options.processes > 1:
        command.append(f"--processes={options.processes}")
    command += [
        f"--outcomes={out / 'outcomes.json'}",
        f"--csv={out / 'locust'}",
        f"--html={out / 'locust.html'}",
        "--csv-full-history",
    ]
    command += [f"--users={options.users}", f"--spawn-rate={options.spawn_rate or 1000}"]
    command += [f"--run-time={options.run_time:.0f}s", f"--stop-timeout={options.deadline + 5:.0f}"]
    command += ["--only-summary", "--exit-code-on-error=0", f"--logfile={out / 'locust.log'}"]
    if options.web:
        return [*command, "--web-host=127.0.0.1", f"--web-port={options.web_port}", "--autostart"]
    return [*command, "--headless"]


def _run_locust(
    command: Sequence[str], options: argparse.Namespace, served: TargetServer, folder: Path, bin_s: float
) -> list[UsageSample]:
    """Run Locust to its end and sample the server meanwhile.

    Raises:
        LoadTestError: Locust failed.
    """
    with (folder / "locust.txt").open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=_ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # an interrupt at the terminal must not reach it: this process ends it gracefully
            preexec_fn=end_with_parent,
        )
    if options.web:
        print(f"Locust's page: http://127.0.0.1:{options.web_port}; interrupt to end the test", flush=True)
    total = None if options.web else math.ceil(options.run_time)
    try:
        watch = _UsageWatch(served.server.pid) if served.server else None
        with tqdm(total=total, desc="load test", unit=" s", disable=None) as bar:
            interrupted = False
            while process.poll() is None:
                try:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(bin_s)
                    if watch:
                        watch.sample()
                    bar.update(min(bin_s, total - bar.n) if total else bin_s)
                except KeyboardInterrupt:
                    if interrupted:
                        raise
                    interrupted = True
                    process.send_signal(_END_SIGNAL)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    if process.returncode != 0:
        last_words = (folder / "locust.txt").read_text(encoding="utf-8", errors="replace").strip()[-800:]
        raise LoadTestError(f"Locust ended with status {process.returncode}; see {folder / 'locust.log'}. {last_words}")
    return watch.samples if watch else []


if __name__ == "__main__":
    sys.exit(main())
