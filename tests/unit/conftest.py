"""What several unit tests share: a server that speaks Triton's HTTP protocol, a file system without exchange."""

import json
import logging
import ssl
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from threading import Thread
from typing import Any

import pytest

from mlcls.base import files as atomic
from support.quiet_http import QuietHttpServer

NAME = "PP-LCNet_x1_0_ML"


class Handler(BaseHTTPRequestHandler):
    """Answers `cat` to one image; `server.trouble` is called before each answer and may send another one itself."""

    server: Any
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.headers.append(dict(self.headers))
        is_config = self.path.endswith("/config")
        self.reply(200, json.dumps({"name": NAME, "max_batch_size": 2}).encode() if is_config else b"")

    def do_POST(self) -> None:
        self.server.headers.append(dict(self.headers))
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked += 1
        if self.server.trouble is not None and self.server.trouble(self):
            return
        raw = [json.dumps({"class_ids": [15], "scores": [0.9], "label_names": ["cat"]}).encode(), b"OK"]
        raw = [len(text).to_bytes(4, "little") + text for text in raw]
        outputs = [
            {"name": name, "datatype": "BYTES", "shape": [1, 1], "parameters": {"binary_data_size": len(text)}}
            for name, text in zip(("result", "status"), raw, strict=True)
        ]
        header = json.dumps({"model_name": NAME, "model_version": "1", "outputs": outputs}).encode()
        self.reply(200, header + b"".join(raw), {"Inference-Header-Content-Length": str(len(header))})

    def reply(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def start_http() -> Iterator[Callable[..., Any]]:
    servers: list[Any] = []

    def start(context: ssl.SSLContext | None = None) -> Any:
        server: Any = QuietHttpServer(("127.0.0.1", 0), Handler)
        server.headers, server.asked, server.trouble = [], 0, None
        server.url = f"localhost:{server.server_port}"
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def without_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that cannot have two paths change places."""
    monkeypatch.setattr(atomic, "_RENAME_EXCHANGE", 1 << 30)  # the kernel answers EINVAL to a flag it does not know


@pytest.fixture
def client_log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """What the client logs, whatever the libraries of earlier tests in this process have done to logging."""
    monkeypatch.setattr(logging.getLogger("mlcls_client"), "disabled", False)
    monkeypatch.setattr(logging.getLogger("mlcls_client"), "propagate", True)
    caplog.set_level(logging.WARNING, logger="mlcls_client")
    return caplog
