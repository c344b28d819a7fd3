"""A child process that executes commands: a line of JSON in, a line of JSON out.

This way, programs in other environments can be measured in turns: loaded once, idle until asked.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, cast

from benchmarks.speed.peers.contender import PeerError
from mlcls.base.processes import end_with_parent

# Root of the checkout, where a child runs.
ROOT: Final = Path(__file__).resolve().parents[3]

# Several children load at once.
_LOAD_TIMEOUT_S: Final = 240.0
_END_TIMEOUT_S: Final = 10.0
_LAST_WORDS: Final = 600


def child_environment(**variables: str) -> dict[str, str]:
    """Return an environment in which a child of any virtual environment can import this checkout's packages."""
    return {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}", **variables}


class LineChild:
    """The parent's side; a context manager that stops the child. The child loads while the parent continues.

    Attributes:
        name: Its name in errors.
    """

    def __init__(self, name: str, python: Path, module: str, *arguments: str, **environment: str) -> None:
        """Start `python -m module arguments`, which must call `obey`.

        Args:
            name: Its name in errors.
            python: The interpreter.
            module: The module, importable from the root of the checkout.
            arguments: Its arguments.
            environment: Variables in addition to those of this process.

        Raises:
            PeerError: The interpreter does not exist.
        """
        self.name = name
        if not python.exists():
            raise PeerError(f"{name}: expected the Python {python}, which does not exist; make it: make bench-quick.")
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # `stop` closes it
        self._process = subprocess.Popen(
            [python, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            cwd=ROOT,
            env=child_environment(**environment),
            start_new_session=True,  # an interrupt at the terminal reaches this process, which stops its children
            preexec_fn=end_with_parent,
        )
        self._input = cast(IO[bytes], self._process.stdin)
        self._output = cast(IO[bytes], self._process.stdout)
        self._loaded = False

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def wait_until_loaded(self) -> None:
        """Wait until the child has loaded what it measures.

        Raises:
            PeerError: Loading failed or took too long.
        """
        if not self._loaded:
            self._receive("load", _LOAD_TIMEOUT_S)
            self._loaded = True

    def ask(self, command: str, timeout_s: float = 120.0, **arguments: Any) -> Any:
        """Have the child execute a command, and return the answer.

        Raises:
            PeerError: The command failed or took too long, or the child exited.
        """
        self.wait_until_loaded()
        line = json.dumps({"command": command, **arguments}).encode() + b"\n"
        try:
            self._input.write(line)
            self._input.flush()
        except OSError:
            raise self._ended(command) from None
        return self._receive(command, timeout_s)

    def stop(self) -> None:
        """Stop the child."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_END_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        for stream in (self._input, self._output):
            with contextlib.suppress(OSError):
                stream.close()
        self._log.close()

    def __enter__(self) -> LineChild:
        """Return the child itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it."""
        self.stop()

    def _receive(self, command: str, timeout_s: float) -> Any:
        reply = json.loads(self._read_line(command, timeout_s))
        if "error" in reply:
            raise PeerError(f"{self.name}: {command} failed: {reply['error']}")
        return reply["value"]

    def _read_line(self, command: str, timeout_s: float) -> bytes:
        descriptor = self._output.fileno()
        content, deadline = b"", time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            while not content.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise PeerError(f"{self.name}: {command} gave no answer within {timeout_s:.0f} s.")
                part = os.read(descriptor, 1 << 16)  # unbuffered: returns the bytes that have arrived
                if not part:
                    raise self._ended(command)
                content += part
        return content

    def _ended(self, command: str) -> PeerError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_TIMEOUT_S)
        self._log.seek(0)
        words = self._log.read().decode(errors="replace").strip()[-_LAST_WORDS:]
        return PeerError(
            f"{self.name}: the process exited during {command} with status {self._process.poll()}; the end of its log: "
            f"{words or 'nothing'}"
        )


def obey(load: Callable[[], Mapping[str, Callable[..., Any]]]) -> None:
    """Run the child's side: report when it has loaded, then execute commands until standard input ends.

    Args:
        load: Loads what is measured, and returns the function for each command; its arguments are passed by name, and
            its value goes back as JSON.
    """
    # the measured libraries may write to standard output
    with os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8") as replies:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

        def reply(call: Callable[[], Any]) -> None:
            try:
                answer = {"value": call()}
            except Exception as error:  # reported to the parent
                answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:_LAST_WORDS]}"}
            replies.write(json.dumps(answer) + "\n")
            replies.flush()

        commands: dict[str, Callable[..., Any]] = {}
        reply(lambda: commands.update(load()))
        for line in sys.stdin:
            request = json.loads(line)
            reply(partial(commands[request.pop("command")], **request))
