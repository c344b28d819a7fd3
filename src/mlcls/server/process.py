"""A tritonserver as a child process: started, awaited until ready, and ended without leftovers."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import shlex
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Final

from mlcls.backends.pulse import PULSE_FOLDER_VARIABLE
from mlcls.base.processes import check_ports, end_group, end_with_parent
from mlcls.errors import ServerError
from mlcls.repository.models import Repository
from mlcls.server.http_api import HttpApi
from mlcls.server.installation import TritonInstallation, embedded_installation
from mlcls.server.logs import STANDARD_OUTPUT, TritonLogPump, describe_end
from mlcls.server.model_control import drain
from mlcls.server.options import ServerOptions, build_command, read_admin_key
from mlcls.server.preflight import check_models

_STOP_TIMEOUT_S: Final = 40.0

# How long writing the last lines of the log may take once the processes have ended.
_LOG_TIMEOUT_S: Final = 5.0


@dataclasses.dataclass(frozen=True)
class _Running:
    """What a started server consists of.

    Attributes:
        process: tritonserver.
        pulses: Folder of the pulses of its Python steps.
        log_path: Triton's log.
        shared_memory_prefix: Of the names of its regions in /dev/shm.
        pump: Translates its log; None if the log is text.
        cleanup: Removes its temporary folder and closes the log.
    """

    process: subprocess.Popen[bytes]
    pulses: Path
    log_path: Path
    shared_memory_prefix: str
    pump: TritonLogPump | None
    cleanup: contextlib.ExitStack


class TritonServer:
    """A tritonserver; a context manager that starts and ends it.

    Attributes:
        options: How it serves.
        admin_key: The key of the closed APIs.
    """

    def __init__(self, options: ServerOptions, installation: TritonInstallation | None = None) -> None:
        """Keep the options and read the admin key; `start` does the rest.

        Args:
            options: How to serve.
            installation: The tritonserver; by default the embedded one.

        Raises:
            ServerError: The environment's admin key is invalid.
        """
        self.options = options
        self.admin_key = read_admin_key()
        self._installation = installation
        self._running: _Running | None = None

    def start(self) -> TritonServer:
        """Start the server unless it was started, and wait until all models are ready.

        Returns:
            The server itself.

        Raises:
            RepositoryError: A model is unknown, has no weights, or has stale or mixed-up files; nothing was started.
            ServerError: A port is taken, the target's backend is not installed, or the server ends or does not become
                ready; the text has Triton's own reason.
        """
        if self._running is not None:
            return self
        options = self.options
        installation = self._installation or embedded_installation()
        check_models(Repository(options.repository), options.models, options.target, installation)
        check_ports(
            options.host,
            {
                "--http-port": options.http_port,
                "--grpc-port": options.grpc_port,
                "--metrics-port": options.metrics_port,
            },
        )
        try:
            self._running = self._launch(installation)
            self._wait_until_ready(self._running)
        except BaseException:
            self._terminate()
            raise
        return self

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
        """Process id of tritonserver.

        Raises:
            ServerError: The server does not run.
        """
        return self._require_running().process.pid

    @property
    def pulses(self) -> Path:
        """Folder of the pulses of its Python steps.

        Raises:
            ServerError: The server does not run.
        """
        return self._require_running().pulses

    def wait(self, timeout_s: float | None = None) -> None:
        """Block until the server ends by itself, or until the timeout.

        Raises:
            ServerError: It ended; the text has the reason from its log.
        """
        running = self._require_running()
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.process.wait(timeout_s)
        if running.process.poll() is not None:
            raise ServerError(_describe_end(running))

    def stop(self, drain_timeout_s: float | None = None) -> None:
        """End the server: requests in flight are answered, then all its processes and shared memory are gone.

        Args:
            drain_timeout_s: How long requests may take; by default as in the options.
        """
        self._drain(self.options.drain_timeout_s if drain_timeout_s is None else drain_timeout_s)
        self._terminate()

    def abandon(self, drain_timeout_s: float) -> None:
        """End an unhealthy server: what it can answer in this time is answered, the rest is lost."""
        self._drain(drain_timeout_s)
        self.kill()

    def kill(self) -> None:
        """End the server at once: requests in flight are lost, all its processes and shared memory are gone."""
        running = self._running
        if running is None:
            return
        if running.process.poll() is None:
            running.process.kill()
            running.process.wait()
        end_group(running.process.pid)
        self._running = None  # its id may become another process's
        if running.pump is not None:
            running.pump.join(_LOG_TIMEOUT_S)
        for segment in Path("/dev/shm").glob(f"{running.shared_memory_prefix}*"):
            segment.unlink(missing_ok=True)
        running.cleanup.close()

    def __enter__(self) -> TritonServer:
        """Start the server unless it was started."""
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the server."""
        self.stop()

    def _require_running(self) -> _Running:
        if self._running is None:
            raise ServerError("Expected a running server, got one that was not started or has ended; call start().")
        return self._running

    def _drain(self, timeout_s: float) -> None:
        if self._running is not None and self._running.process.poll() is None:
            drain(self.http_url, self.admin_key, self.options.models, timeout_s)

    def _terminate(self) -> None:
        """Have the server end itself, then end what is left."""
        if self._running is not None and self._running.process.poll() is None:
            self._running.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._running.process.wait(_STOP_TIMEOUT_S)
        self.kill()

    def _launch(self, installation: TritonInstallation) -> _Running:
        with contextlib.ExitStack() as cleanup:
            folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="mlcls-serve-")))
            if not _is_plain(folder):
                raise ServerError(
                    f"The folder for temporary files, {folder.parent}, has characters that a shell interprets, and "
                    f"Triton starts the Python steps with a shell; set TMPDIR to a plain path: TMPDIR=/tmp."
                )
            backends, pulses = folder / "backends", folder / "pulses"
            backends.mkdir()
            installation.assemble_backends(backends)
            pulses.mkdir()
            options = self.options
            if not _is_plain(options.repository.resolve()):
                (folder / "models").symlink_to(options.repository.resolve())
                options = dataclasses.replace(options, repository=folder / "models")
            log_path = self.options.log_path or folder / "tritonserver.log"
            prefix = f"mlcls_{os.getpid()}_{secrets.token_hex(4)}_"
            try:
                log = None
                if log_path != STANDARD_OUTPUT:  # unbuffered: closing it must not fail on a full disk
                    log = cleanup.enter_context(log_path.open("wb", buffering=0))
            except OSError as error:
                raise ServerError(f"The log file {log_path} cannot be written: {error.strerror}.") from None
            as_json = self.options.log_format == "json"  # through a pipe
            process = subprocess.Popen(
                build_command(options, installation.executable, backends, prefix, self.admin_key),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if as_json else log,
                stderr=subprocess.STDOUT if as_json or log is not None else None,
                env={**installation.environment(), PULSE_FOLDER_VARIABLE: str(pulses)},
                start_new_session=True,  # Ctrl-C must reach mlcls only, which then drains the server
                preexec_fn=end_with_parent,  # so that nothing holds the ports and the memory
                restore_signals=not as_json,  # a pipe that nobody reads must not end it while it drains
            )
            pump = TritonLogPump.start(process, log) if as_json else None
            return _Running(process, pulses, log_path, prefix, pump, cleanup.pop_all())

    def _wait_until_ready(self, running: _Running) -> None:
        deadline = time.monotonic() + self.options.ready_timeout_s
        api, waiting = HttpApi(self.http_url), list(self.options.models)
        while waiting:
            if running.process.poll() is not None:
                raise ServerError(_describe_end(running))
            if api.is_ready(waiting[0]):
                waiting.pop(0)
                continue
            if time.monotonic() > deadline:
                raise ServerError(
                    f"tritonserver was not ready within {self.options.ready_timeout_s:.0f} s; see its log with "
                    f"--log-file, or give it more time with --ready-timeout."
                )
            time.sleep(0.05)


def _is_plain(path: Path) -> bool:
    """Return whether a shell takes a path as it is."""
    return shlex.quote(str(path)) == str(path)


def _describe_end(running: _Running) -> str:
    tail = None
    if running.pump is not None:
        running.pump.join(_LOG_TIMEOUT_S)
        tail = running.pump.tail()
    return describe_end(running.log_path, running.process.returncode, tail)
