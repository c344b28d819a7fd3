"""Requests to Triton's HTTP API, and what became of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mlcls.base.processes import free_ports
from mlcls.server.http_api import HttpApi, HttpStatusError, NoAnswerError
from support.quiet_http import QuietHandler, serve_http

ANSWERS = {
    "/v2/models/a%2Fb/ready": (200, b""),
    "/v2/models/cat/versions/2/ready": (200, b""),
    "/json": (403, b'{"error": "This API is restricted"}'),
    "/text": (502, b"<html>"),
}


class _Handler(QuietHandler):
    def do_GET(self) -> None:  # noqa: N802  # http.server's name
        self.reply(*ANSWERS.get(self.path, (404, b"")))


@pytest.fixture(autouse=True)
def no_exceptions(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the proxy, that the environment may name."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def port() -> Iterator[int]:
    with serve_http(_Handler) as port:
        yield port


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
    assert HttpApi(f"{host}:{port}", allow_proxy=True).is_ready("cat", 2)


def test_a_proxy_stands_before_others_if_allowed(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
    with pytest.raises(HttpStatusError, match="HTTP status 404"):
        HttpApi("triton.invalid:8000", allow_proxy=True).request("/v2", 5)
    with pytest.raises(NoAnswerError):
        HttpApi("triton.invalid:8000").request("/v2", 5)
