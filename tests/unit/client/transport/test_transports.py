"""The HTTP transport against a server that speaks Triton's HTTP protocol, and the mapping of errors."""

import io
import json
import socket
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest
from PIL import Image

from mlcls_client import (
    DeadlineExceededError,
    ImageRejectedError,
    InvalidRequestError,
    MlclsClientError,
    ModelNotFoundError,
    ProtocolError,
    ServerError,
    ServerUnavailableError,
    create_model,
)
from mlcls_client.testing import FakeServer
from mlcls_client.transport.connection import Connection
from mlcls_client.transport.error_mapping import error_from_status

NAME = "ResNet50_ML"
CONNECTION = Connection("server:8001")


class Handler(BaseHTTPRequestHandler):
    """Answers `cat` for a PNG; the behavior is set on the server object."""

    server: Any
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        model = f"/v2/models/{NAME}"
        if self.path == f"{model}/config":
            if self.server.config_closed:
                self.reply(403, {"error": "This API is restricted, expecting header 'key'"})
            else:
                self.reply(200, {"name": NAME, "max_batch_size": 2})
        else:
            self.reply(200 if self.path in ("/v2/health/ready", f"{model}/ready") else 400, None)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        header_length = int(self.headers["Inference-Header-Content-Length"])
        request, content = json.loads(body[:header_length]), body[header_length:]
        self.server.requests.append(request)
        if self.server.answer is not None:
            self.server.answer(self)
        elif self.path != f"/v2/models/{NAME}/infer":
            self.reply(400, {"error": f"Request for unknown model: '{self.path}' is not found"})
        else:
            self.infer(request, content)

    def infer(self, request: dict[str, Any], content: bytes) -> None:
        images = []
        while content:
            end = 4 + int.from_bytes(content[:4], "little")
            images.append(content[4:end])
            content = content[end:]
        good = [image.startswith(b"\x89PNG") for image in images]
        if not any(good):
            self.reply(400, {"error": "no image in this request is good"})
            return
        cat = json.dumps({"class_ids": [15], "scores": [0.9], "label_names": ["cat"]})
        texts = {
            "result": [cat if ok else '{"error": "bad"}' for ok in good],
            "status": ["OK" if ok else "bad" for ok in good],
        }
        outputs, payload = [], b""
        for output in request["outputs"]:
            raw = b"".join(len(text).to_bytes(4, "little") + text.encode() for text in texts[output["name"]])
            outputs.append(
                {
                    "name": output["name"],
                    "datatype": "BYTES",
                    "shape": [len(images), 1],
                    "parameters": {"binary_data_size": len(raw)},
                }
            )
            payload += raw
        self.reply(200, {"model_name": NAME, "model_version": "1", "outputs": outputs}, payload)

    def reply(self, status: int, content: dict[str, Any] | None, payload: bytes = b"") -> None:
        header = b"" if content is None else json.dumps(content).encode()
        self.send_response(status)
        if payload:
            self.send_header("Inference-Header-Content-Length", str(len(header)))
        self.send_header("Content-Length", str(len(header) + len(payload)))
        self.end_headers()
        self.wfile.write(header + payload)

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def server() -> Iterator[Any]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http_server:
        http_server.daemon_threads = True
        settings: Any = http_server
        settings.requests, settings.config_closed, settings.answer = [], False, None
        settings.url = f"127.0.0.1:{http_server.server_port}"
        Thread(target=http_server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield settings
        http_server.shutdown()


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (4, 4)).save(buffer, format="PNG")
    return buffer.getvalue()


def test_predict_over_http(server: Any) -> None:
    with create_model(NAME, url=server.url, protocol="http") as model:
        assert model.is_ready()
        results = list(model.predict([png(), b"junk", png()], batch_size=8, threshold={"cat": 0.3}, on_error="yield"))
    assert [result.label_names for result in results] == [["cat"], [], ["cat"]]
    assert sorted(request["inputs"][0]["shape"] for request in server.requests) == [[1, 1], [2, 1]]
    assert server.requests[0]["parameters"]["threshold"] == '{"cat": 0.3}'


def test_the_server_is_told_how_long_the_answer_is_wanted(server: Any) -> None:
    with create_model(NAME, url=server.url, protocol="http", timeout_s=7.5) as model:
        list(model.predict(png()))
    assert 5_000_000 < server.requests[0]["parameters"]["timeout"] <= 7_500_000, "microseconds"


def test_closed_configuration_over_http(server: Any) -> None:
    server.config_closed = True
    with create_model(NAME, url=server.url, protocol="http") as model:
        assert len(list(model.predict([png()] * 3, batch_size=8))) == 3
    assert len(server.requests) == 3


def test_a_bad_image_over_http(server: Any) -> None:
    with (
        create_model(NAME, url=server.url, protocol="http") as model,
        pytest.raises(ImageRejectedError, match="no image in this request is good"),
    ):
        list(model.predict(b"junk"))


def test_an_unknown_model_over_http(server: Any) -> None:
    with create_model("other", url=server.url, protocol="http") as model:
        assert not model.is_ready()
        with pytest.raises(ModelNotFoundError, match="is not found"):
            list(model.predict(png()))


def test_nobody_at_the_http_address() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"127.0.0.1:{probe.getsockname()[1]}"
    with create_model(NAME, url=url, protocol="http", timeout_s=2) as model:
        assert not model.is_ready()
        with pytest.raises(ServerUnavailableError, match="Cannot reach"):
            list(model.predict(png()))


def test_a_late_answer_over_http(server: Any) -> None:
    server.answer = lambda handler: time.sleep(0.8)
    with (
        create_model(NAME, url=server.url, protocol="http", timeout_s=0.2) as model,
        pytest.raises(DeadlineExceededError, match=r"within 0\.2 s"),
    ):
        list(model.predict(png()))


@pytest.mark.parametrize(
    "answer",
    [
        lambda handler: handler.wfile.write(b"this is not HTTP\r\n\r\n"),
        lambda handler: handler.reply(200, {"hello": "world"}),
        lambda handler: handler.reply(200, {"outputs": []}),
        lambda handler: handler.reply(
            200, {"outputs": [{"name": "result", "datatype": "FP32", "shape": [1, 1], "data": [1.0]}]}
        ),
    ],
)
def test_something_else_at_the_address(server: Any, answer: Any) -> None:
    server.answer = answer
    with (
        create_model(NAME, url=server.url, protocol="http", timeout_s=5) as model,
        pytest.raises(ProtocolError, match="Expected"),
    ):
        list(model.predict(png()))


def test_the_port_of_the_other_protocol(server: Any) -> None:
    with (
        create_model(NAME, url=server.url, protocol="grpc", timeout_s=2) as model,
        pytest.raises((ServerUnavailableError, DeadlineExceededError)),
    ):
        list(model.predict(png()))
    with (
        FakeServer(NAME) as grpc_server,
        create_model(NAME, url=grpc_server.url, protocol="http", timeout_s=2) as model,
        pytest.raises(ProtocolError, match="the port is the one of this protocol"),
    ):
        list(model.predict(png()))


@pytest.mark.parametrize(
    ("status", "text", "expected"),
    [
        ("StatusCode.UNAVAILABLE", "failed to connect to all addresses", ServerUnavailableError),
        ("503", "no available versions", ServerUnavailableError),
        ("StatusCode.UNAVAILABLE", "This protocol is restricted, expecting header 'k'", ServerError),
        ("403", "This API is restricted, expecting header 'k'", ServerError),
        ("StatusCode.NOT_FOUND", "Request for unknown model: 'x' is not found", ModelNotFoundError),
        ("404", "Request for unknown model: 'x' is not found", ModelNotFoundError),
        ("400", "Request for unknown model: 'x' is not found", ModelNotFoundError),
        ("StatusCode.INVALID_ARGUMENT", "expected an image", InvalidRequestError),
        ("400", "expected an image", InvalidRequestError),
        ("StatusCode.RESOURCE_EXHAUSTED", "message larger than max", InvalidRequestError),
        ("StatusCode.DEADLINE_EXCEEDED", "Deadline Exceeded", DeadlineExceededError),
        ("504", "gateway timeout", DeadlineExceededError),
        ("StatusCode.UNIMPLEMENTED", "Method not found!", ProtocolError),
        ("StatusCode.INTERNAL", "out of memory", ServerError),
        ("500", "out of memory", ServerError),
        (None, "something", ServerError),
    ],
)
def test_every_status_has_its_error(status: str | None, text: str, expected: type[MlclsClientError]) -> None:
    error = error_from_status(status, text, CONNECTION)
    assert type(error) is expected
    assert error.server_text == text
    assert "server:8001" in str(error)
    assert text in str(error) or expected is DeadlineExceededError
