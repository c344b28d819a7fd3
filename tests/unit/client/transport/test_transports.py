"""The HTTP protocol of Triton, and the mapping of errors."""

from collections.abc import Callable
from typing import Any

import pytest

from mlcls_client import (
    DeadlineExceededError,
    ImageRejectedError,
    InvalidRequestError,
    MlclsClientError,
    Model,
    ModelNotFoundError,
    ProtocolError,
    ServerError,
    ServerUnavailableError,
    create_model,
)
from mlcls_client.testing import FakeServer
from mlcls_client.transport.connection import Connection
from mlcls_client.transport.error_mapping import error_from_status
from support.client_images import NAME, encode


@pytest.fixture
def web(start_http: Callable[..., Any]) -> Any:
    return start_http()


def open_http(url: str, name: str = NAME, timeout_s: float = 7.5) -> Model:
    return create_model(name, url=url, protocol="http", timeout_s=timeout_s)


def test_predict_over_http(web: Any) -> None:
    images = [encode(), b"junk", encode()]
    with open_http(web.url) as model:
        assert model.is_ready()
        results = list(model.predict(images, batch_size=8, threshold={"cat": 0.3}, on_error="yield"))
        with pytest.raises(ImageRejectedError, match="no image in this request is good"):
            list(model.predict(b"junk"))
    assert [result.label_names for result in results] == [["cat"], [], ["cat"]]
    assert sorted(request["inputs"][0]["shape"] for request in web.requests[:2]) == [[1, 1], [2, 1]]
    assert web.requests[0]["parameters"]["threshold"] == '{"cat": 0.3}'
    assert 5_000_000 < web.requests[0]["parameters"]["timeout"] <= 7_500_000, "how long it is wanted, in microseconds"


@pytest.mark.parametrize(
    "answer",
    [
        lambda handler: handler.wfile.write(b"this is not HTTP\r\n\r\n"),
        lambda handler: handler.reply(200, b'{"hello": "world"}') or True,
        lambda handler: handler.answer() or True,
        lambda handler: (
            handler.reply(200, b'{"outputs": [{"name": "result", "datatype": "FP32", "shape": [1, 1], "data": [1.0]}]}')
            or True
        ),
    ],
)
def test_something_else_at_the_address(web: Any, answer: Any) -> None:
    web.trouble = answer
    with open_http(web.url) as model, pytest.raises(ProtocolError, match="Expected"):
        list(model.predict(encode()))


def test_the_port_of_the_other_protocol(web: Any, server: FakeServer) -> None:
    with (
        create_model(NAME, url=web.url, timeout_s=2) as model,
        pytest.raises((ServerUnavailableError, DeadlineExceededError)),
    ):
        list(model.predict(encode()))
    with open_http(server.url) as model, pytest.raises(ProtocolError, match="the port is the one of this protocol"):
        list(model.predict(encode()))


LOST_STEP = "in ensemble 'cat', ... message: Stub process 'cat_engine_0_0' is not healthy."


@pytest.mark.parametrize(
    ("status", "text", "expected"),
    [
        ("StatusCode.UNAVAILABLE", "failed to connect to all addresses", ServerUnavailableError),
        ("StatusCode.UNAVAILABLE", "Socket closed", ServerUnavailableError),
        ("StatusCode.CANCELLED", "CANCELLED", ServerUnavailableError),
        ("503", "no available versions", ServerUnavailableError),
        ("StatusCode.UNAVAILABLE", "This protocol is restricted, expecting header 'k'", ServerError),
        ("403", "This API is restricted, expecting header 'k'", ServerError),
        ("StatusCode.NOT_FOUND", "Request for unknown model: 'x' is not found", ModelNotFoundError),
        ("400", "Request for unknown model: 'x' is not found", ModelNotFoundError),
        ("StatusCode.INVALID_ARGUMENT", "expected an image", InvalidRequestError),
        ("StatusCode.RESOURCE_EXHAUSTED", "message larger than max", InvalidRequestError),
        ("StatusCode.DEADLINE_EXCEEDED", "Deadline Exceeded", DeadlineExceededError),
        ("StatusCode.UNIMPLEMENTED", "Method not found!", ProtocolError),
        ("StatusCode.INTERNAL", LOST_STEP, ServerUnavailableError),
        ("500", "out of memory", ServerError),
        (None, "something", ServerError),
    ],
)
def test_every_status_has_its_error(status: str | None, text: str, expected: type[MlclsClientError]) -> None:
    error = error_from_status(status, text, Connection("server:8001"))
    assert type(error) is expected
    assert error.server_text == text
    assert "server:8001" in str(error)
    assert text.rstrip(".") in str(error) or expected is DeadlineExceededError
