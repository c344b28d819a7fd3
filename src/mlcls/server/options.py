"""Options of a tritonserver, the admin key of its closed APIs, and its command line."""

from __future__ import annotations

import dataclasses
import os
import re
import secrets
from pathlib import Path
from typing import Final

from mlcls.base.processes import free_ports
from mlcls.errors import ConfigError, ServerError
from mlcls.repository.settings import Target
from mlcls.server.logs import LogFormat

# APIs that change the server or read its memory. If they were open, any client could unload a model.
CLOSED_APIS: Final = ("model-repository", "shared-memory", "logging", "trace")

# Triton's deployment guide also closes these on a server that others can reach. The configuration of a model stays
# open: it tells the client how many images a request may hold.
CLOSED_APIS_IN_PRODUCTION: Final = (*CLOSED_APIS, "statistics")

# Environment variable with the key of the closed APIs. Without it, a random key that nobody knows closes them.
ADMIN_KEY_VARIABLE: Final = "MLCLS_ADMIN_KEY"
# HTTP header that carries the key.
ADMIN_KEY_HEADER: Final = "mlcls-admin-key"

# What fits in a header and in Triton's option; spaces are allowed, but not at either end.
_KEY: Final = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?")

# Name of the service in traces.
_SERVICE_NAME: Final = "mlcls"

# No commas, which separate the parts of Triton's option, and no password, which the process list would show.
_URL: Final = re.compile(r"https?://([\w.-]+|\[[0-9a-fA-F:]+\])(:\d{1,5})?(/[\w./~%+-]*)?")


@dataclasses.dataclass(frozen=True)
class ServerOptions:
    """How to serve.

    Attributes:
        repository: The model repository.
        models: Names of the ensembles.
        target: The engine.
        host: IPv4 address or name to listen on.
        http_port: Port of the HTTP API.
        grpc_port: Port of the gRPC API.
        metrics_port: Port of the Prometheus metrics.
        ready_timeout_s: How long loading may take.
        log_path: File for Triton's whole log, or `STANDARD_OUTPUT`; by default it is not kept.
        closed_apis: Triton's names of the APIs that need the admin key.
        drain_timeout_s: How long requests in flight may take when the server is stopped; by default as long as a
            request may wait in a queue.
        log_format: Triton's own text, or one JSON object per message.
        trace_url: Collector's OTLP receiver over HTTP, `http://localhost:4318/v1/traces` for example; None traces
            nothing.
        trace_rate: One request in this many is traced; 1 for all.
    """

    repository: Path
    models: tuple[str, ...]
    target: Target = "embedded"
    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002
    ready_timeout_s: float = 300.0
    log_path: Path | None = None
    closed_apis: tuple[str, ...] = CLOSED_APIS
    drain_timeout_s: float = 30.0
    log_format: LogFormat = "text"
    trace_url: str | None = None
    trace_rate: int = 100

    def __post_init__(self) -> None:
        if self.trace_url is not None and not _URL.fullmatch(self.trace_url):
            raise ConfigError(
                f"Expected --trace-url to be the http or https address of a collector's OTLP receiver without a name "
                f"or password, http://localhost:4318/v1/traces for example, got {self.trace_url!r}."
            )

    @classmethod
    def on_free_ports(cls, repository: Path, *models: str) -> ServerOptions:
        """Return options for a server on ports that are free now."""
        http_port, grpc_port, metrics_port = free_ports(3)
        return cls(repository, models, http_port=http_port, grpc_port=grpc_port, metrics_port=metrics_port)

    @property
    def ports(self) -> dict[str, int]:
        """The ports by Triton's names for them."""
        return {"http": self.http_port, "grpc": self.grpc_port, "metrics": self.metrics_port}


def read_admin_key() -> str:
    """Return the environment's key, or a random one.

    Raises:
        ServerError: The environment's key has characters that a header cannot carry; the text does not show it.
    """
    key = os.environ.get(ADMIN_KEY_VARIABLE)
    if not key:
        return secrets.token_urlsafe(24)
    if not _KEY.fullmatch(key):
        raise ServerError(
            f"{ADMIN_KEY_VARIABLE}: expected printable ASCII characters without spaces at the ends, got others, which "
            f"a header cannot carry; make a key: openssl rand -hex 32."
        )
    return key


def build_command(
    options: ServerOptions, executable: Path, backends: Path, shared_memory_prefix: str, admin_key: str
) -> list[str]:
    """Return the command line of tritonserver.

    Args:
        options: How to serve.
        executable: The program.
        backends: Folder of all backends.
        shared_memory_prefix: Prefix of the names of the server's regions in /dev/shm.
        admin_key: Key of the closed APIs.
    """
    closed = f"{','.join(options.closed_apis)}:{ADMIN_KEY_HEADER}={admin_key}"
    command = [
        str(executable),
        f"--model-repository={options.repository.absolute()}",
        f"--backend-directory={backends}",
        "--model-control-mode=explicit",
        *(f"--load-model={name}" for name in options.models),
        "--disable-auto-complete-config",
        # With strict readiness, the server is not ready while any model loads, nor ever again after an unload: a load
        # balancer would remove it at the first new version. At startup it is ready after its models either way.
        "--strict-readiness=false",
        "--exit-on-error=true",
        f"--backend-config=python,shm-region-prefix-name={shared_memory_prefix}",
        *(f"--{api}-address={options.host}" for api in options.ports),
        *(f"--{api}-port={port}" for api, port in options.ports.items()),
        f"--http-restricted-api={closed}",
        f"--grpc-restricted-protocol={closed}",
        "--metrics-config=summary_latencies=true",
        "--log-format=ISO8601",
    ]
    if options.trace_url is not None:
        command += [
            "--trace-config=mode=opentelemetry",
            f"--trace-config=opentelemetry,url={options.trace_url}",
            f"--trace-config=opentelemetry,resource=service.name={_SERVICE_NAME}",
            f"--trace-config=rate={options.trace_rate}",
            "--trace-config=level=TIMESTAMPS",
        ]
    if options.target != "embedded":
        command.append(f"--model-config-name={options.target}")
    return command
