"""The gateway as in its container: `start.sh` and Envoy, with generated certificates."""

from __future__ import annotations

import contextlib
import http.client
import os
import secrets
import ssl
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from tritonclient.grpc import InferenceServerClient

from mlcls.base.processes import free_ports
from mlcls.server.process import TritonServer
from mlcls_client import Model, create_model
from support.processes import ROOT
from support.settling import wait_for

START: Final = ROOT / "docker" / "gateway" / "start.sh"
TOOLS: Final = Path(sys.executable).parent


class Gateway:
    """A running gateway, or one that could not start.

    Attributes:
        secrets: Folder with `tls.crt`, `tls.key` and `api_keys`.
        port: Port of HTTP and gRPC, with TLS.
        metrics_port: Port of the metrics.
    """

    def __init__(self, folder: Path, keys: Mapping[str, str], environment: Mapping[str, str]) -> None:
        """Start it without waiting; see `wait_until_healthy`."""
        self.secrets = folder / "secrets"
        self.secrets.mkdir(parents=True)
        make_certificate(self.secrets)
        self.write_keys(keys)
        self.port, self.metrics_port = free_ports(2)
        self._log = folder / "gateway.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                ["sh", START, "--concurrency", "1"],
                env={
                    "PATH": f"{TOOLS}:{os.environ['PATH']}",
                    "GATEWAY_ADDRESS": "127.0.0.1",
                    "GATEWAY_PORT": str(self.port),
                    "METRICS_PORT": str(self.metrics_port),
                    "SECRETS_FOLDER": str(self.secrets),
                    "RUN_FOLDER": str(folder / "run"),
                    **environment,
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def url(self) -> str:
        """`host:port` for both protocols."""
        return f"localhost:{self.port}"

    @property
    def certificate(self) -> Path:
        """The certificate that a client must trust."""
        return self.secrets / "tls.crt"

    @property
    def log(self) -> str:
        """Its output so far."""
        return self._log.read_text(errors="replace")

    def write_keys(self, keys: Mapping[str, str], *further_lines: str) -> None:
        """Replace the file of keys in place, as an editor does."""
        lines = ["# name key", *(f"{name} {key}" for name, key in keys.items()), *further_lines]
        (self.secrets / "api_keys").write_text("".join(f"{line}\n" for line in lines))

    def request(
        self, method: str, path: str, key: str | None = None, body: bytes | None = None, **headers: str
    ) -> tuple[int, str]:
        """Return status and body of the response to one HTTP request; the path is sent unchanged."""
        context = ssl.create_default_context(cafile=self.certificate)
        connection = http.client.HTTPSConnection("localhost", self.port, timeout=30, context=context)
        with contextlib.closing(connection):
            if key is not None:
                headers["authorization"] = f"Bearer {key}"
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            response = connection.getresponse()
            return response.status, response.read().decode(errors="replace")

    def model(self, name: str, key: str | None, protocol: str = "grpc") -> Model:
        """Return the client of a model."""
        return create_model(name, url=self.url, protocol=protocol, ssl=self.certificate, api_key=key)

    def grpc_client(self) -> InferenceServerClient:
        """Return Triton's own client."""
        return InferenceServerClient(self.url, ssl=True, root_certificates=str(self.certificate))

    def wait_until_healthy(self) -> None:
        """Wait until it forwards requests."""

        def is_healthy() -> bool:
            assert self._process.poll() is None, self.log
            with contextlib.suppress(OSError):
                return self.request("GET", "/healthz")[0] == 200
            return False

        wait_for(is_healthy)

    def stop(self) -> None:
        """Stop it."""
        self._process.terminate()
        self._process.wait(20)


@contextlib.contextmanager
def run_gateway(folder: Path, server: TritonServer, keys: Mapping[str, str], **environment: str) -> Iterator[Gateway]:
    """Yield a ready gateway in front of a server."""
    gateway = Gateway(
        folder,
        keys,
        {
            "TRITON_HOST": server.options.host,
            "TRITON_HTTP_PORT": str(server.options.http_port),
            "TRITON_GRPC_PORT": str(server.options.grpc_port),
            **environment,
        },
    )
    try:
        gateway.wait_until_healthy()
        yield gateway
    finally:
        gateway.stop()


def make_key() -> str:
    """Return a key, like `openssl rand -hex 32`."""
    return secrets.token_hex(32)


def make_certificate(folder: Path) -> None:
    """Write `tls.crt` and `tls.key` for localhost, valid for a day, with the command from the README."""
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", "tls.key", "-out", "tls.crt"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
