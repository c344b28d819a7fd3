"""An HTTP server for tests that prints nothing, whatever its clients do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any


class QuietHttpServer(ThreadingHTTPServer):
    """A server that ends without waiting for requests in flight."""

    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore errors: in some tests, clients leave early."""


class QuietHandler(BaseHTTPRequestHandler):
    """A handler that prints nothing; `server` is `Any`, so that tests can give it fields."""

    server: Any
    protocol_version = "HTTP/1.1"

    def reply(self, status: int, content: bytes = b"", headers: dict[str, str] | None = None) -> None:
        """Answer with a content and its length; `headers` may replace the length."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test's output clean."""


class _FolderHandler(QuietHandler, SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.0"


@contextmanager
def running(server: ThreadingHTTPServer) -> Iterator[Any]:
    """Let a server answer in a thread."""
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def served_folder(folder: Path) -> Iterator[str]:
    """Serve the files of a folder; the address ends without a slash."""
    with running(QuietHttpServer(("127.0.0.1", 0), partial(_FolderHandler, directory=str(folder)))) as server:
        yield f"http://127.0.0.1:{server.server_port}"


@contextmanager
def serve_http(handler: type[BaseHTTPRequestHandler]) -> Iterator[int]:
    """Serve while the block runs; yield the port."""
    with running(QuietHttpServer(("127.0.0.1", 0), handler)) as server:
        yield server.server_port
