"""A peer that is an HTTP server in its own process: started, awaited, asked over persistent connections, stopped."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from benchmarks.speed.peers.contender import Answer, Figures, Load, PeerError
from benchmarks.speed.peers.line_child import ROOT
from mlcls.base.processes import end_with_parent
from mlcls.tuning.closed_loop import Call, run_closed_loop

_HOST: Final = "127.0.0.1"
# Several peers load at once.
_READY_TIMEOUT_S: Final = 240.0
_CALL_TIMEOUT_S: Final = 120.0
_END_TIMEOUT_S: Final = 15.0
_LAST_WORDS: Final = 800


class HttpServer:
    """A server that labels photos. It loads while the caller continues.

    Attributes:
        name: Its name in tables.
        setting: How it is set up.
    """

    def __init__(
        self,
        name: str,
        setting: str,
        command: Sequence[str | Path],
        environment: Mapping[str, str],
        port: int,
        path: str,
        photos: Sequence[Path],
        encode: Callable[[bytes], bytes],
        decode: Callable[[bytes], Answer],
    ) -> None:
        """Start the server.

        Args:
            name: Its name in tables.
            setting: How it is set up.
            command: Its command line.
            environment: Its whole environment.
            port: Port on 127.0.0.1 that the command makes it listen on.
            path: URL path that takes images.
            photos: What it is measured with.
            encode: Converts the content of an image file to a request body.
            decode: Converts a response body to an answer.

        Raises:
            PeerError: Its program does not exist.
        """
        self.name = name
        self.setting = setting
        self._port, self._path, self._encode, self._decode = port, path, encode, decode
        # bodies are encoded before the window, so that the load takes as little CPU time as possible
        self._bodies = [encode(photo.read_bytes()) for photo in photos]
        if not Path(command[0]).exists():
            raise PeerError(f"{name}: expected the program {command[0]}, which does not exist; run: make bench-quick.")
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # `stop` closes it
        self._process = subprocess.Popen(
            list(map(str, command)),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=dict(environment),
            start_new_session=True,
            preexec_fn=end_with_parent,
        )

    @property
    def pid(self) -> int:
        """Process id of the server's first process."""
        return self._process.pid

    def wait_until_loaded(self) -> None:
        """Wait until its `/health` answers.

        Raises:
            PeerError: It exited or did not become ready.
        """
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while True:
            if self._process.poll() is not None:
                raise PeerError(f"{self.name}: exited with status {self._process.returncode}.{self._words()}")
            connection = http.client.HTTPConnection(_HOST, self._port, timeout=5)
            with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
                connection.request("GET", "/health")
                if connection.getresponse().status == http.client.OK:
                    return
            if time.monotonic() > deadline:
                raise PeerError(f"{self.name}: was not ready within {_READY_TIMEOUT_S:.0f} s.{self._words()}")
            time.sleep(0.05)

    def answer(self, photos: Sequence[Path]) -> list[Answer]:
        """See `Contender`."""
        with contextlib.closing(self._connect()) as connection:
            return [self._decode(self._post(connection, self._encode(photo.read_bytes()))) for photo in photos]

    def measure(self, load: Load) -> Figures:
        """See `Contender`."""
        connections: list[http.client.HTTPConnection] = []

        def make_call() -> Call:
            connections.append(connection := self._connect())
            bodies = itertools.islice(itertools.cycle(self._bodies), len(connections) - 1, None)
            return lambda: self._post(connection, next(bodies))

        try:
            return Figures.of_loop(run_closed_loop(make_call, load.concurrency, load.window_s, load.warmup_s))
        finally:
            for connection in connections:
                connection.close()

    def stop(self) -> None:
        """Stop the server and the processes that it started; do nothing the second time."""
        if self._log.closed:
            return
        if self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_TIMEOUT_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # its session, with workers that outlived it
        self._process.wait()
        self._log.close()

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(_HOST, self._port, timeout=_CALL_TIMEOUT_S)

    def _post(self, connection: http.client.HTTPConnection, body: bytes) -> bytes:
        try:
            connection.request("POST", self._path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise PeerError(
                f"{self.name}: expected an answer from {self._path}, got {error!r}.{self._words()}"
            ) from None
        if response.status != http.client.OK:
            raise PeerError(
                f"{self.name}: expected status 200 from {self._path}, got {response.status}: "
                f"{content[:300].decode(errors='replace')}"
            )
        return content

    def _words(self) -> str:
        self._log.flush()
        size = os.fstat(self._log.fileno()).st_size
        words = os.pread(self._log.fileno(), _LAST_WORDS, max(0, size - _LAST_WORDS)).decode(errors="replace").strip()
        return f" The end of its log: {words or 'nothing'}"
