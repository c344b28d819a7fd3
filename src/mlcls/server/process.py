"""A tritonserver as a child process: started, awaited until ready, and ended without leftovers."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Final

from mlcls.backends.pulse import PULSE_FOLDER_VARIABLE
from mlcls.base.processes import check_ports, end_group, end_with_parent, has_zombie
from mlcls.errors import ModelControlError, ServerError
from mlcls.repository.models import Repository
from mlcls.server.http_api import HttpApi
from mlcls.server.installation import TritonInstallation, embedded_installation
from mlcls.server.logs import STANDARD_OUTPUT, TritonLog, describe_end
from mlcls.server.model_control import ModelControl
from mlcls.server.options import ServerOptions, build_command, read_admin_key
from mlcls.server.preflight import check_models
from mlcls.server.run_folder import pulse_folder, run_folder, shared_memory_prefix

# Triton waits for ever for a step whose process cannot be started. A step that fails later ends Triton well before.
_LOST_STEP_TIMEOUT_S: Final = 5.0
_STOP_TIMEOUT_S: Final = 40.0

# Stack of each thread. Triton 2.51 parses JSON and forms on the stack, and ends if it is too small: at 8 MiB, the usual
# one, when a body of 4 MB comes with curl's own content type.
_STACK_BYTES: Final = 128 << 20

# Room in a pool of shared memory for what is not images or pixels.
_POOL_SPARE_BYTES: Final = 64 << 20

# How long writing the last lines of the log may take once the processes have ended.
_LOG_TIMEOUT_S: Final = 5.0


@dataclasses.dataclass(frozen=True)
class _Running:
    """A started server; `cleanup` removes what it left once its processes have ended."""

    process: subprocess.Popen[bytes]
    pulses: Path
    log: TritonLog
    cleanup: contextlib.ExitStack


class TritonServer:
    """A tritonserver, by default the embedded one; a context manager that starts and ends it.

    An invalid admin key in the environment raises a ServerError.

    Attributes:
        options: How it serves.
        admin_key: The key of the closed APIs.
    """

    def __init__(self, options: ServerOptions, installation: TritonInstallation | None = None) -> None:
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
        check_ports(options.host, {f"--{api}-port": port for api, port in options.ports.items()})
        try:
            self._launch(installation)
            self._wait_until_ready()
            self._require_running().log.is_starting = False
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
        """Process id of tritonserver; a ServerError if it does not run."""
        return self._require_running().process.pid

    @property
    def pulses(self) -> Path:
        """Folder of the pulses of its Python steps; a ServerError if it does not run."""
        return self._require_running().pulses

    def wait(self, timeout_s: float | None = None) -> None:
        """Block until the server ends by itself, or until the timeout.

        Raises:
            ServerError: It ended; the text has the reason from its log.
        """
        running = self._require_running()
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = running.process.wait(timeout_s)
            end_group(running.process.pid)  # its steps, which hold its log open
            running.log.join(_LOG_TIMEOUT_S)
            raise ServerError(describe_end(status, running.log.tail(), running.log.is_starting))

    def stop(self) -> None:
        """End the server: requests in flight are answered, then all its processes and shared memory are gone."""
        self._drain(self.options.drain_timeout_s)
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
        running.process.kill()
        running.process.wait()
        end_group(running.process.pid)
        self._running = None  # its id may become another process's
        running.log.join(_LOG_TIMEOUT_S)
        running.cleanup.close()

    def __enter__(self) -> TritonServer:
        """Start the server unless it was started."""
        return self.start()

    def __exit__(self, *_: object) -> None:
        """End the server."""
        self.stop()

    def _require_running(self) -> _Running:
        if self._running is None:
            raise ServerError("Expected a running server, got one that was not started or has ended; call start().")
        return self._running

    def _drain(self, timeout_s: float) -> None:
        """Unload the ensembles and wait until they have answered what they accepted, or until the timeout.

        SIGTERM alone is not enough: Triton then refuses a request that is between two steps of its ensemble. An
        ensemble that is unloaded answers what it accepted, and refuses the rest at once, as unavailable.
        """
        if self._running is None or self._running.process.poll() is not None:
            return
        control = ModelControl(self.http_url, self.admin_key, timeout_s)
        with contextlib.suppress(ModelControlError):
            for name in self.options.models:
                control.unload(name)
            control.wait_until_drained(self.options.models, timeout_s)

    def _terminate(self) -> None:
        """Have the server end itself, then end what is left."""
        if self._running is not None:
            self._running.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._running.process.wait(_STOP_TIMEOUT_S)
        self.kill()

    def _launch(self, installation: TritonInstallation) -> None:
        with contextlib.ExitStack() as cleanup:
            if not _is_plain(Path(tempfile.gettempdir())):
                raise ServerError(
                    f"The folder for temporary files, {tempfile.gettempdir()}, has characters that a shell interprets, "
                    f"and Triton starts the Python steps with a shell; set TMPDIR to a plain path: TMPDIR=/tmp."
                )
            folder = cleanup.enter_context(run_folder())
            backends, pulses = folder / "backends", pulse_folder(folder)
            backends.mkdir()
            installation.assemble_backends(backends)
            options = self.options
            if not _is_plain(options.repository.resolve()):
                (folder / "models").symlink_to(options.repository.resolve())
                options = dataclasses.replace(options, repository=folder / "models")
            stream = self._open_log(cleanup)
            reader, writer = os.pipe()
            log = TritonLog(reader, stream, self.options.log_format)
            with open(writer, "wb") as output:
                process = subprocess.Popen(
                    build_command(
                        options, installation.executable, backends, shared_memory_prefix(folder), self.admin_key
                    ),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env={**installation.environment(), PULSE_FOLDER_VARIABLE: str(pulses)},
                    start_new_session=True,  # Ctrl-C must reach mlcls only, which then drains the server
                    preexec_fn=functools.partial(_prepare_child, os.getpid(), self._limit_pools()),
                    # a pipe that nobody reads must not end it while it drains, nor a pool that reached its limit
                    restore_signals=False,
                )
                self._running = _Running(process, pulses, log, cleanup.pop_all())  # at once: a signal may come

    def _limit_pools(self) -> int:
        """Return how large each pool of shared memory may become.

        An instance of a Python step has a pool for its batch, which grows with the batch and never shrinks.
        """
        repository = Repository(self.options.repository)
        largest = 0
        for name in self.options.models:
            settings, transform = repository.settings(name), repository.active(name).spec.transform
            image_bytes = settings.images.max_bytes + 3 * transform.height * transform.width
            largest = max(largest, settings.max_batch_size * image_bytes)
        return largest + _POOL_SPARE_BYTES

    def _open_log(self, cleanup: contextlib.ExitStack) -> IO[bytes] | None:
        path = self.options.log_path
        if path is None:
            return None
        if path == STANDARD_OUTPUT:
            return sys.stdout.buffer if self.options.log_format == "json" else sys.stderr.buffer
        try:
            return cleanup.enter_context(path.open("wb", buffering=0))  # closing it must not fail on a full disk
        except OSError as error:
            raise ServerError(f"The log file {path} cannot be written: {error.strerror}.") from None

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self.options.ready_timeout_s
        api, whole_at = HttpApi(self.http_url), time.monotonic()
        for name in self.options.models:
            while not api.is_ready(name):
                self.wait(0.05)
                if not has_zombie(self.pid):
                    whole_at = time.monotonic()
                elif time.monotonic() > whole_at + _LOST_STEP_TIMEOUT_S:
                    raise ServerError(
                        f"A Python step ended while it was started: {self._require_running().log.last_foreign_line()}."
                    )
                if time.monotonic() > deadline:
                    raise ServerError(
                        f"tritonserver was not ready within {self.options.ready_timeout_s:.0f} s; see its log with "
                        f"--log-file, or give it more time with --ready-timeout."
                    )


def _prepare_child(parent: int, largest_file_bytes: int) -> None:
    end_with_parent(parent)  # so that nothing holds the ports and the memory
    for kind, size in ((resource.RLIMIT_FSIZE, largest_file_bytes), (resource.RLIMIT_STACK, _STACK_BYTES)):
        _, hard = resource.getrlimit(kind)
        resource.setrlimit(kind, (size if hard == resource.RLIM_INFINITY else min(size, hard), hard))


def _is_plain(path: Path) -> bool:
    """Return whether a shell takes a path as it is."""
    return shlex.quote(str(path)) == str(path)
