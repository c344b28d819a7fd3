"""A tritonserver as a child process: started, watched until it is ready, and ended without leftovers."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Final

from mlcls.backends.pulse import PULSE_FOLDER_VARIABLE
from mlcls.base.processes import check_ports, end_group, end_with_parent
from mlcls.errors import ServerError
from mlcls.repository.models import Repository
from mlcls.server import logs as server_log
from mlcls.server.installation import TritonInstallation, embedded_installation
from mlcls.server.logs import STANDARD_OUTPUT, TritonLogPump
from mlcls.server.model_control import drain
from mlcls.server.options import ServerOptions, build_command, read_admin_key
from mlcls.server.preflight import check_models

_STOP_TIMEOUT_S: Final = 40.0

# How long the last lines of the log may take to be written once the processes have ended.
_LOG_TIMEOUT_S: Final = 5.0


class TritonServer:
    """A running tritonserver; a context manager that ends it.

    Attributes:
        options: What it was started with.
        admin_key: The key of the closed APIs.
        pulses: Folder of the pulses of its Python steps.
    """

    def __init__(
        self,
        options: ServerOptions,
        installation: TritonInstallation | None = None,
        owner: contextlib.ExitStack | None = None,
    ) -> None:
        """Start the server and wait until all models are ready.

        Args:
            options: How to serve.
            installation: Which Triton; by default the embedded one.
            owner: Stops the server when it closes, even if a signal interrupts the caller before it has the server.

        Raises:
            RepositoryError: A model is unknown, has no weights, is stale or mixed up; nothing was started.
            ServerError: The admin key of the environment cannot be one, a port is taken, the target's backend is not
                installed, or the server ends or stays unready; the text has Triton's own reason.
        """
        self.options = options
        self.admin_key = read_admin_key()
        installation = installation or embedded_installation()
        check_models(Repository(options.repository), options.models, options.target, installation)
        check_ports(
            options.host,
            {
                "--http-port": options.http_port,
                "--grpc-port": options.grpc_port,
                "--metrics-port": options.metrics_port,
            },
        )
        self._cleanup = contextlib.ExitStack()
        self._was_ready = self._is_gone = False
        self._pump: TritonLogPump | None = None
        if owner is not None:
            owner.callback(self.stop)
        try:
            self._start(installation)
            self._wait_until_ready()
            self._was_ready = True
        except BaseException:
            self.stop()
            raise

    @property
    def http_url(self) -> str:
        """`host:port` of the HTTP API."""
        return f"{self.options.host}:{self.options.http_port}"

    @property
    def grpc_url(self) -> str:
        """`host:port` of the gRPC API."""
        return f"{self.options.host}:{self.options.grpc_port}"

    @property
    def metrics_url(self) -> str:
        """URL of the Prometheus metrics."""
        return f"http://{self.options.host}:{self.options.metrics_port}/metrics"

    @property
    def pid(self) -> int:
        """Process id of tritonserver."""
        return self._process.pid

    def wait(self, timeout_s: float | None = None) -> None:
        """Block until the server ends by itself, or for a time.

        Raises:
            ServerError: It ended; the text has its last words.
        """
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)
        if self._process.poll() is None:
            return
        raise ServerError(self._describe_end())

    def stop(self, drain_timeout_s: float | None = None) -> None:
        """End the server: requests in flight are answered, then all its processes and shared memory are gone.

        Args:
            drain_timeout_s: How long that may take; by default what the options say.
        """
        process = getattr(self, "_process", None)
        if process is not None and process.poll() is None and self._was_ready:
            timeout_s = self.options.drain_timeout_s if drain_timeout_s is None else drain_timeout_s
            drain(self.http_url, self.admin_key, self.options.models, timeout_s)
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_TIMEOUT_S)
        self.kill()

    def abandon(self, drain_timeout_s: float) -> None:
        """End a server that is not well: what it still can answer in this time is answered, the rest is lost."""
        if self._process.poll() is None:
            drain(self.http_url, self.admin_key, self.options.models, drain_timeout_s)
        self.kill()

    def kill(self) -> None:
        """End the server at once: requests in flight are lost, all its processes and shared memory are gone."""
        process = getattr(self, "_process", None)
        if process is not None and not self._is_gone:
            if process.poll() is None:
                process.kill()
                process.wait()
            end_group(process.pid)
            self._is_gone = True  # its id may become another process's
            if self._pump is not None:
                self._pump.join(_LOG_TIMEOUT_S)
            for segment in Path("/dev/shm").glob(f"{self._shared_memory_prefix}*"):
                segment.unlink(missing_ok=True)
        self._cleanup.close()

    def __enter__(self) -> TritonServer:
        """Return the server itself; it is ready."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the server."""
        self.stop()

    def _start(self, installation: TritonInstallation) -> None:
        folder = Path(self._cleanup.enter_context(tempfile.TemporaryDirectory(prefix="mlcls-serve-")))
        backends = folder / "backends"
        backends.mkdir()
        installation.assemble_backends(backends)
        self.pulses = folder / "pulses"
        self.pulses.mkdir()
        self._log_path = self.options.log_path or folder / "tritonserver.log"
        self._shared_memory_prefix = f"mlcls_{os.getpid()}_{secrets.token_hex(4)}_"
        try:
            log = None
            if self._log_path != STANDARD_OUTPUT:  # unbuffered: a full disk is no reason to fail when it is closed
                log = self._cleanup.enter_context(self._log_path.open("wb", buffering=0))
        except OSError as error:
            raise ServerError(f"The log file {self._log_path} cannot be written: {error.strerror}.") from None
        as_json = self.options.log_format == "json"  # through a pipe
        self._process = subprocess.Popen(
            build_command(self.options, installation.executable, backends, self._shared_memory_prefix, self.admin_key),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if as_json else log,
            stderr=subprocess.STDOUT if as_json or log is not None else None,
            env={**installation.environment(), PULSE_FOLDER_VARIABLE: str(self.pulses)},
            start_new_session=True,  # an interrupt at the terminal must reach mlcls only, which then drains the server
            preexec_fn=end_with_parent,  # so that nothing keeps the ports and the memory
            restore_signals=not as_json,  # a pipe that nobody reads any more must not end it while it drains
        )
        self._pump = TritonLogPump.start(self._process, log) if as_json else None

    def _describe_end(self) -> str:
        tail = None
        if self._pump is not None:
            self._pump.join(_LOG_TIMEOUT_S)
            tail = self._pump.tail()
        return server_log.describe_end(self._log_path, self._process.returncode, tail)

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self.options.ready_timeout_s
        waiting = [f"http://{self.http_url}/v2/models/{name}/ready" for name in self.options.models]
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy has no way to this machine
        while True:
            if self._process.poll() is not None:
                raise ServerError(self._describe_end())
            with contextlib.suppress(OSError), opener.open(waiting[0], timeout=5) as response:
                if response.status == 200:
                    waiting.pop(0)
                    if not waiting:
                        return
                    continue
            if time.monotonic() > deadline:
                raise ServerError(
                    f"tritonserver was not ready within {self.options.ready_timeout_s:.0f} s; see its log with "
                    f"--log-file, or give it more time with --ready-timeout."
                )
            time.sleep(0.05)
