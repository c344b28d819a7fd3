"""What tests of the client share: a gRPC server, servers that speak Triton's HTTP protocol, an empty environment."""

import importlib
import json
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from mlcls_client import Model, create_model
from mlcls_client.cli.main import main
from mlcls_client.testing import FakeServer
from support.client_images import NAME
from support.quiet_http import QuietHandler, QuietHttpServer, running


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("MLCLS_API_KEY", "MLCLS_ADMIN_KEY", "MLCLS_URL"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer(NAME) as fake:
        yield fake


@pytest.fixture
def model(server: FakeServer) -> Iterator[Model]:
    with create_model(NAME, url=server.url) as opened:
        yield opened


class Handler(QuietHandler, BaseHTTPRequestHandler):
    """Answers `cat` to each PNG file; `server.trouble` is called before each answer and may send another one itself."""

    def do_GET(self) -> None:
        self.server.headers.append(dict(self.headers))
        model = f"/v2/models/{NAME}"
        if self.path == f"{model}/config" and self.server.config_closed:
            self.reply(403, b'{"error": "This API is restricted, expecting header \'key\'"}')
        elif self.path == f"{model}/config":
            self.reply(200, json.dumps({"name": NAME, "max_batch_size": 2}).encode())
        else:
            self.reply(200 if self.path in ("/v2/health/ready", f"{model}/ready") else 400)

    def do_POST(self) -> None:
        self.server.headers.append(dict(self.headers))
        body = self.rfile.read(int(self.headers["Content-Length"]))
        header_length = int(self.headers["Inference-Header-Content-Length"])
        self.server.requests.append(json.loads(body[:header_length]))
        if self.server.trouble is not None and self.server.trouble(self):
            return
        utils: Any = importlib.import_module("tritonclient.utils")
        images = utils.deserialize_bytes_tensor(body[header_length:]).tolist()
        good = [image.startswith(b"\x89PNG") for image in images]
        if self.path != f"/v2/models/{NAME}/infer":
            self.reply(400, json.dumps({"error": f"Request for unknown model: '{self.path}' is not found"}).encode())
        elif any(good):
            cat = json.dumps({"class_ids": [15], "scores": [0.9], "label_names": ["cat"]})
            self.answer(
                result=[cat if ok else '{"error": "bad"}' for ok in good], status=["OK" if ok else "bad" for ok in good]
            )
        else:
            self.reply(400, b'{"error": "no image in this request is good"}')

    def answer(self, **texts: list[str]) -> None:
        outputs, payload = [], b""
        for name, items in texts.items():
            raw = b"".join(len(item).to_bytes(4, "little") + item.encode() for item in items)
            parameters = {"binary_data_size": len(raw)}
            outputs.append({"name": name, "datatype": "BYTES", "shape": [len(items), 1], "parameters": parameters})
            payload += raw
        header = json.dumps({"model_name": NAME, "model_version": "1", "outputs": outputs}).encode()
        self.reply(200, header + payload, {"Inference-Header-Content-Length": str(len(header))})


@pytest.fixture
def start_http() -> Iterator[Callable[..., Any]]:
    servers = ExitStack()

    def start(context: ssl.SSLContext | None = None) -> Any:
        server: Any = QuietHttpServer(("127.0.0.1", 0), Handler)
        server.headers, server.requests, server.trouble, server.config_closed = [], [], None, False
        server.url = f"localhost:{server.server_port}"
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        return servers.enter_context(running(server))

    with servers:
        yield start


@pytest.fixture(params=["grpc", "http"])
def protocol(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def asked(protocol: str, server: FakeServer, start_http: Callable[..., Any]) -> Any:
    """A server of each protocol; both have `url`, `requests`, `headers` and `config_closed`."""
    return server if protocol == "grpc" else start_http()


@pytest.fixture
def ask(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command against the gRPC server; returns its exit code and what it wrote to both streams."""

    def run(*arguments: object) -> tuple[int, str, str]:
        texts = list(map(str, arguments))
        code = main(texts if "--url" in texts or "--help" in texts else [*texts, "--url", server.url])
        return code, *capsys.readouterr()

    return run
