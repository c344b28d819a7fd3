"""Retries if they are safe, and one deadline for all attempts of a request, over both protocols."""

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import tritonclient.http.aio  # noqa: F401  # its import takes time that a deadline would count

from mlcls_client import (
    DeadlineExceededError,
    InvalidRequestError,
    ModelNotFoundError,
    ServerUnavailableError,
    create_model,
)
from mlcls_client.testing import FakeServer
from mlcls_client.transport import transports
from mlcls_client.transport.connection import Connection
from support.client_images import NAME, encode, unused_url


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transports, "_FIRST_PAUSE_S", 0.02)


@pytest.mark.usefixtures("short_pauses")
def test_a_server_that_comes_back_is_asked_again(server: FakeServer) -> None:
    with create_model(NAME, url=server.url, retries=3) as model:
        server.outages = 3
        assert [result.label_names for result in model.predict([encode()] * 2)] == [["red"], ["red"]]
        assert len(server.requests) == 2
        server.outages = 4
        with pytest.raises(ServerUnavailableError, match="is being restarted"):
            list(model.predict(encode()))
        assert server.outages == 0
    with create_model(NAME, url=server.url, retries=0) as model, pytest.raises(ServerUnavailableError):
        server.outages = 2
        list(model.predict(encode()))
    assert server.outages == 1, "without retries the first failure counts"


def test_a_server_that_is_started_late(protocol: str, start_http: Callable[..., Any]) -> None:
    if protocol == "http":
        server = start_http()
        server.trouble = lambda handler: len(server.requests) < 3 and not handler.reply(503, b'{"error": "not ready"}')
        with create_model(NAME, server.url, protocol, retries=4) as model:
            assert len(list(model.predict(encode()))) == 1
        assert len(server.requests) == 3
        return
    url = unused_url()
    late = FakeServer(NAME, port=int(url.rpartition(":")[2]))
    with create_model(NAME, url, retries=20, timeout_s=15) as model, ExitStack() as started:
        threading.Timer(0.5, started.enter_context, (late,)).start()
        assert len(list(model.predict(encode()))) == 1


@pytest.mark.usefixtures("short_pauses")
def test_a_connection_that_is_lost_over_http(start_http: Callable[..., Any]) -> None:
    server = start_http()
    is_lost = [True, False]

    def hang_up(handler: Any) -> bool:
        handler.close_connection = True
        return is_lost.pop(0)

    server.trouble = hang_up
    with create_model(NAME, server.url, "http", retries=2) as model:
        assert len(list(model.predict(encode()))) == 1
    is_lost = [True] * 9  # some versions of the HTTP library ask a second time themselves
    with (
        create_model(NAME, server.url, "http", retries=0) as model,
        pytest.raises(ServerUnavailableError, match="was lost"),
    ):
        list(model.predict(encode()))


@pytest.mark.usefixtures("short_pauses")
def test_what_the_server_has_judged_is_not_asked_again(server: FakeServer) -> None:
    with create_model("other", url=server.url, retries=3) as model, pytest.raises(ModelNotFoundError):
        list(model.predict(encode()))
    assert len(server.headers) == 2, "the second asks whether the server is ready, and has therefore judged"
    with create_model(NAME, url=server.url, retries=3) as model, pytest.raises(InvalidRequestError):
        list(model.predict(encode(), threshold={"person": 0.5}))
    assert len(server.requests) == 2, "the second asks whether the image or the threshold is to blame"


@pytest.mark.usefixtures("short_pauses")
@pytest.mark.parametrize("name", [NAME, "other"])
def test_a_server_that_is_still_loading_is_asked_again(name: str) -> None:
    with FakeServer(NAME, ready=False) as server, create_model(name, url=server.url, retries=50) as model:
        timer = threading.Timer(0.3, setattr, (server, "ready", True))
        timer.start()
        if name == NAME:
            assert len(list(model.predict(encode()))) == 1
        else:
            with pytest.raises(ModelNotFoundError):
                list(model.predict(encode()))
        assert server.ready, "the model was not given up before the server had loaded what it has"
        timer.join()


def test_the_deadline_is_that_of_all_tries() -> None:
    begin = time.monotonic()
    with (
        create_model(NAME, "127.0.0.1:9", timeout_s=1.0, retries=1000) as model,
        pytest.raises(ServerUnavailableError),
    ):
        list(model.predict(encode()))
    assert time.monotonic() - begin < 2.0


def test_a_slow_answer_after_retries_is_held_to_what_is_left(start_http: Callable[..., Any]) -> None:
    server = start_http()

    def trouble(handler: Any) -> bool:
        if len(server.requests) == 1:
            time.sleep(1)
            handler.reply(503, b'{"error": "not ready"}')
            return True
        time.sleep(6)
        return False

    server.trouble = trouble
    begin = time.monotonic()
    with create_model(NAME, server.url, "http", 2.0, retries=3) as model, pytest.raises(DeadlineExceededError):
        list(model.predict(encode()))
    assert 1.9 < time.monotonic() - begin < 2.9
    assert len(server.requests) == 2


def test_an_answer_that_trickles_is_held_to_the_deadline_over_http(start_http: Callable[..., Any]) -> None:
    server = start_http()

    def trickle(handler: Any) -> bool:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        for _ in range(40):
            handler.wfile.write(b"x")
            time.sleep(0.05)
        return True

    server.trouble = trickle
    begin = time.monotonic()
    with create_model(NAME, server.url, "http", 0.4) as model:
        with pytest.raises(DeadlineExceededError):
            list(model.predict(encode()))
        assert time.monotonic() - begin < 1.0
        server.trouble = None
        assert len(list(model.predict(encode()))) == 1, "the connection of the late answer is not used again"


def test_pauses_grow_and_are_not_all_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    async def note(pause_s: float) -> None:
        pauses.append(pause_s)

    async def fail(left_s: float) -> None:
        raise ServerUnavailableError("gone")

    monkeypatch.setattr(asyncio, "sleep", note)
    with pytest.raises(ServerUnavailableError):
        asyncio.run(transports.Transport(Connection("server:8001", timeout_s=1000.0, retries=9)).retry(fail))
    shares = [pause / min(5.0, 0.2 * 2**number) for number, pause in enumerate(pauses)]
    assert len(set(shares)) == 9
    assert 0.5 <= min(shares) <= max(shares) <= 1
