"""Requests to Triton's HTTP API, and what became of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from mlcls.base.processes import free_ports
from mlcls.server.http_api import HttpApi, HttpStatusError, NoAnswerError
from support.quiet_http import QuietHttpServer

ANSWERS = {
    "/v2/models/a%2Fb/ready": (200, b""),
    "/v2/models/cat/versions/2/ready": (200, b""),
    "/json": (403, b'{"error": "This API is restricted"}'),
    "/text": (502, b"<html>"),
}


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        status, body = ANSWERS.get(self.path, (404, b""))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing on the screen."""


@pytest.fixture
def port() -> Iterator[int]:
    with QuietHttpServer(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def test_readiness(port: int) -> None:
    api = HttpApi(f"127.0.0.1:{port}")
    assert api.is_ready("a/b")
    assert api.is_ready("cat", 2)
    assert not api.is_ready("cat", 1)


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("/json", 403, "HTTP status 403, This API is restricted"),
        ("/text", 502, "HTTP status 502, <html>"),
        ("/nothing", 404, "HTTP status 404, no text"),
    ],
)
def test_errors(port: int, path: str, status: int, text: str) -> None:
    with pytest.raises(HttpStatusError) as raised:
        HttpApi(f"http://127.0.0.1:{port}/").request(path, 5)
    assert (raised.value.status, str(raised.value)) == (status, text)


def test_no_server() -> None:
    (port,) = free_ports(1)
    api = HttpApi(f"127.0.0.1:{port}")
    assert not api.is_ready("cat")
    with pytest.raises(NoAnswerError, match="Connection refused"):
        api.request("/v2", 5)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_no_proxy_stands_before_this_machine(port: int, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert HttpApi(f"{host}:{port}", allow_proxy=True).is_ready("cat", 2)


def test_a_proxy_stands_before_others_if_allowed(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(HttpStatusError, match="HTTP status 404"):
        HttpApi("triton.invalid:8000", allow_proxy=True).request("/v2", 5)
    with pytest.raises(NoAnswerError):
        HttpApi("triton.invalid:8000").request("/v2", 5)
