"""The peers of a served model, each in processes of its own that are stopped while another one is measured."""

from __future__ import annotations

import abc
import base64
import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from benchmarks.speed import in_process
from benchmarks.speed.bench import CALL_TIMEOUT_S, Answer, Bench, Figures, PeerError, Rate, answer_of
from benchmarks.speed.in_process import BARE_PROCESS, PADDLEX_PREDICT, cores
from benchmarks.speed.perf_analyzer import ROOT, Load, write_payloads
from mlcls.base.files import write_text
from mlcls.base.processes import end_with_parent, free_ports
from mlcls.paddle.model import PaddleXModel
from mlcls.server.installation import ALLOCATOR_VARIABLES

PADDLEX_SERVER: Final = "paddlex --serve"
LITSERVE: Final = "LitServe"

# PaddleX's environment, which has its serving plugin and nothing of mlcls.
_PADDLEX_BIN: Final = ROOT / ".venv-paddlex" / "bin"
_LITSERVE_PYTHON: Final = ROOT / ".venv-bench" / "bin" / "python"

# Several peers load at once.
_LOAD_TIMEOUT_S: Final = 240.0
_LAST_WORDS: Final = 800


class Peer(abc.ABC):
    """A contender in its own processes, which load while the caller continues.

    Attributes:
        name: Its name in tables.
    """

    def __init__(
        self, name: str, command: Sequence[str | Path], environment: Mapping[str, str], pass_fds: Sequence[int] = ()
    ) -> None:
        """Start the processes.

        Raises:
            PeerError: The program does not exist.
        """
        self.name = name
        if not Path(command[0]).exists():
            raise PeerError(f"{name}: expected the program {command[0]}, which does not exist; run: make bench-quick.")
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # `stop` closes it
        self.process = subprocess.Popen(
            list(map(str, command)),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            cwd=ROOT,
            env={**os.environ, **environment},
            pass_fds=pass_fds,
            start_new_session=True,  # an interrupt at the terminal reaches this process, which stops its peers
            preexec_fn=end_with_parent,
        )

    @abc.abstractmethod
    def wait_until_loaded(self) -> None:
        """Wait until it can answer; raise a `PeerError` if it exited or took too long."""

    @abc.abstractmethod
    def answer(self) -> list[Answer]:
        """Return the answer to each photo; raise a `PeerError` if one is missing."""

    @abc.abstractmethod
    def measure(self, rate: Rate) -> Figures:
        """Return throughput and latency under load; raise an `MlclsError` if a call failed."""

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Let the stopped processes run in the block; idle ones would take CPU time from the others."""
        self.signal(signal.SIGCONT)
        try:
            yield
        finally:
            self.signal(signal.SIGSTOP)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all processes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def stop(self) -> None:
        """End all processes; they have nothing to save."""
        self.signal(signal.SIGKILL)
        self.process.wait()
        self._log.close()

    def error(self, what: str) -> PeerError:
        """Return an error with the end of the log."""
        size = os.fstat(self._log.fileno()).st_size
        words = os.pread(self._log.fileno(), _LAST_WORDS, max(0, size - _LAST_WORDS)).decode(errors="replace").strip()
        return PeerError(f"{self.name}: {what}. The end of its log: {words or 'nothing'}")


class Child(Peer):
    """A contender without a server: `in_process.py`."""

    def __init__(self, bench: Bench, name: str) -> None:
        """Start it.

        Args:
            bench: The model and the photos.
            name: One of `OPENVINO`, `ONNX_RUNTIME`, `BARE_PROCESS` and `PADDLEX_PREDICT`.
        """
        python, model, about = Path(sys.executable), bench.files.onnx, bench.files.spec.to_json()
        variables: Mapping[str, str] = ALLOCATOR_VARIABLES if name == BARE_PROCESS else {}
        if name == PADDLEX_PREDICT:
            python, model, variables = _PADDLEX_BIN / "python", bench.files.paddlex, _paddlex_variables(bench.work)
            about = PaddleXModel.open(bench.files.paddlex).config.model_name
        self._pipe, theirs = multiprocessing.Pipe()
        arguments = [str(theirs.fileno()), name, str(model.resolve()), about, *map(str, bench.photos)]
        environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}", **variables}
        with contextlib.closing(theirs):
            super().__init__(name, [python, "-m", in_process.__name__, *arguments], environment, [theirs.fileno()])

    def wait_until_loaded(self) -> None:
        """See `Peer`."""
        self._receive("load", _LOAD_TIMEOUT_S)

    def ask(self, command: str, *arguments: Any) -> Any:
        """Have it execute a command, and return the value.

        Raises:
            PeerError: The command failed or took too long, or the process exited.
        """
        with contextlib.suppress(OSError):
            self._pipe.send((command, arguments))
        return self._receive(command, CALL_TIMEOUT_S)

    def answer(self) -> list[Answer]:
        """See `Peer`."""
        return [answer_of(result) for result in self.ask("answer")]

    def measure(self, rate: Rate) -> Figures:
        """See `Peer`."""
        window_s = max(rate.seconds, 2 * rate.image_s)
        return Figures(*self.ask("measure", window_s, window_s / 5))

    def _receive(self, command: str, timeout_s: float) -> Any:
        try:
            if not self._pipe.poll(timeout_s):
                raise self.error(f"{command} gave no answer within {timeout_s:.0f} s")
            value, error = self._pipe.recv()
        except (EOFError, OSError):
            raise self.error(f"the process exited during {command} with status {self.process.wait()}") from None
        if error is not None:
            raise self.error(f"{command} failed: {error}")
        return value


class JsonServer(Peer):
    """A server that takes a photo as JSON over HTTP."""

    def __init__(
        self,
        bench: Bench,
        name: str,
        path: str,
        options: Mapping[str, Any],
        read: Callable[[Any], Answer],
        command: Callable[[int], Sequence[str | Path]],
        environment: Mapping[str, str],
    ) -> None:
        """Start it.

        Args:
            bench: The model and the photos.
            name: Its name in tables.
            path: Path that takes photos, without the first slash.
            options: Further fields of the request's body, whose field `image` is the photo in base64.
            read: Converts the answer's JSON.
            command: Its command line, from a port of 127.0.0.1.
            environment: Variables in addition to those of this process.
        """
        (port,) = free_ports(1)
        super().__init__(name, command(port), environment)
        self._bench, self._read, self._url = bench, read, f"http://127.0.0.1:{port}"
        self._payloads = [{"image": base64.b64encode(image).decode("ascii"), **options} for image in bench.images]
        data = write_payloads(bench.work / f"{name}.json".replace(" ", "-"), self._payloads)
        self._load = Load(name, self._url, data, 1, path=path)
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def wait_until_loaded(self) -> None:
        """See `Peer`."""
        deadline = time.monotonic() + _LOAD_TIMEOUT_S
        while True:
            with contextlib.suppress(OSError), self._opener.open(f"{self._url}/health", timeout=5):
                return
            if self.process.poll() is not None:
                raise self.error(f"exited with status {self.process.returncode}")
            if time.monotonic() > deadline:
                raise self.error(f"was not ready within {_LOAD_TIMEOUT_S:.0f} s")
            time.sleep(0.05)

    def answer(self) -> list[Answer]:
        """See `Peer`."""
        answers = []
        for payload in self._payloads:
            body, head = json.dumps(payload).encode(), {"Content-Type": "application/json"}
            request = urllib.request.Request(f"{self._url}/{self._load.path}", body, head)
            try:
                with self._opener.open(request, timeout=CALL_TIMEOUT_S) as response:
                    answers.append(self._read(json.loads(response.read())))
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise self.error(f"expected an answer from {self._load.path}, got {error!r}") from None
        return answers

    def measure(self, rate: Rate) -> Figures:
        """See `Peer`."""
        return self._bench.measure_server(self._load, rate)


def start_paddlex_server(bench: Bench) -> JsonServer:
    """Start PaddleX's own server on the CPU, with its own configuration of the pipeline; a request is one image.

    By default, PaddleX would also draw the labels and return the picture.
    """
    model, name = bench.files.paddlex, PaddleXModel.open(bench.files.paddlex).config.model_name
    pipeline = "image_multilabel_classification"
    module = {"module_name": pipeline, "model_name": name, "model_dir": str(model.resolve()), "batch_size": 1}
    configuration = bench.work / f"{name}.yaml"
    modules = {"ImageMultiLabelClassification": module}
    command = [str(_PADDLEX_BIN / "paddlex"), "--serve", "--pipeline", str(configuration)]
    write_text(configuration, yaml.safe_dump({"pipeline_name": pipeline, "SubModules": modules}))
    return JsonServer(
        bench,
        PADDLEX_SERVER,
        "multilabel-image-classification",
        {"visualize": False},
        lambda reply: {int(each["id"]): float(each["score"]) for each in reply["result"]["categories"]},
        lambda port: [*command, "--device", "cpu", "--host", "127.0.0.1", "--port", str(port)],
        _paddlex_variables(bench.work),
    )


def start_litserve(bench: Bench) -> JsonServer:
    """Start LitServe with OpenVINO: a Python program behind FastAPI with the same graph."""
    onnx, spec = bench.files.onnx.resolve(), bench.files.spec.to_json()
    program = [str(_LITSERVE_PYTHON), "-m", "benchmarks.speed.litserve_app"]
    return JsonServer(
        bench,
        LITSERVE,
        "predict",
        {},
        answer_of,
        lambda port: [*program, str(port), str(onnx), spec],
        {"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"},
    )


def _paddlex_variables(work: Path) -> dict[str, str]:
    """Return the environment variables of PaddleX in its best setting.

    Paddle's oneDNN kernels are on, as in PaddleX by default. There is one thread per core: PaddleX's default of 10 is
    slower on two cores. The server passes images to the pipeline one after the other, as by default: PaddleX does so
    because of a bug in Paddle Inference, and in parallel it was no faster.
    """
    return {
        "PADDLE_PDX_DISABLE_MODEL_SOURCE_CHECK": "True",  # else it asks its model hosts, even for a folder
        "PADDLE_PDX_CPU_NUM_THREADS": str(cores()),
        "PADDLE_PDX_CACHE_HOME": str(work / "paddlex_cache"),  # instead of the home folder
    }
