"""Images in shared memory: the same answers, nothing left behind, and a clear error if the server refuses."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlcls_client import InvalidRequestError, Model, ServerError, create_model
from mlcls_client.testing import FakeServer
from mlcls_client.transport import shared_memory
from support.client_images import NAME, encode, number_of, wait_until

KEY = "a-key"


def bitmap(number: int) -> bytes:
    return encode((number + 5, 0, 0), "BMP", side=40)


def left_behind(pid: int | None = None) -> list[str]:
    """The regions of this process or of another one; other clients of the machine have some too."""
    return [name for name in os.listdir("/dev/shm") if name.startswith(f"mlcls-client-{pid or os.getpid()}-")]


@pytest.fixture
def server() -> Iterator[FakeServer]:
    before = left_behind()
    with FakeServer(NAME, admin_key=KEY) as fake:
        yield fake
    assert left_behind() == before


def share(server: FakeServer, key: str | None = KEY) -> Model:
    return create_model(NAME, url=server.url, shared_memory=True, admin_key=key)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_answers_are_those_of_images_that_travel(server: FakeServer, batch_size: int) -> None:
    server.delay = lambda images: time.sleep(0.005)
    with share(server) as model:
        results = model.predict(map(bitmap, range(200)), batch_size, threshold=0.0)
        assert [number_of(result) for result in results] == list(range(200))
        assert len(server.regions) == 1
        assert left_behind() == [], "a region has no name once it is registered"
    assert server.regions == {}
    assert [image for images, _ in server.requests for image in images if image not in map(bitmap, range(200))] == []


def test_it_is_off_by_default(server: FakeServer) -> None:
    with create_model(NAME, url=server.url, admin_key=KEY) as model:
        assert len(list(model.predict(bitmap(0)))) == 1
        assert server.regions == {}
    assert all(KEY not in headers.values() for headers in server.headers), "the key is for the closed APIs alone"


@pytest.mark.parametrize("key", [None, "another"])
def test_a_server_that_refuses_is_named_with_the_remedy(server: FakeServer, key: str | None) -> None:
    with (
        share(server, key) as model,
        pytest.raises(ServerError, match=r"accepts no shared memory.*restricted.*leave shared_memory out") as caught,
    ):
        list(model.predict([bitmap(0)] * 3))
    assert caught.value.server_text is not None
    assert "triton-grpc-protocol-mlcls-admin-key" in caught.value.server_text
    assert server.requests == []


def test_images_that_do_not_fit_travel(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "REGION_BYTES", 12_000)  # two of 4.9 kB
    server.delay = lambda images: time.sleep(0.01)
    with share(server) as model:
        results = model.predict(map(bitmap, range(60)), threshold=0.0, concurrency=8)
        assert [number_of(result) for result in results] == list(range(60))
        (result,) = model.predict(Image.fromarray(np.full((300, 300, 3), 250, np.uint8)), threshold=0.0)
        assert len(result.scores) == 3


def test_a_server_that_was_restarted_gets_a_new_region(server: FakeServer) -> None:
    with share(server) as model:
        results = model.predict(map(bitmap, range(100)), threshold=0.0, concurrency=4)
        numbers = [number_of(next(results))]
        for region in list(server.regions):
            del server.regions[region]  # what a restart does
        numbers += [number_of(result) for result in results]
    assert numbers == list(range(100))


@pytest.mark.parametrize(("busy", "timeout_s", "left"), [(3, 60, 0), (10**6, 0.5, 1)])
def test_a_region_is_unregistered_once_no_request_uses_it_any_more_or_left_at_last(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, busy: int, timeout_s: float, left: int
) -> None:
    monkeypatch.setattr(shared_memory, "_UNREGISTER_TIMEOUT_S", timeout_s)
    with share(server) as model:
        assert len(list(model.predict(bitmap(0)))) == 1
        server.busy_regions = busy
    assert len(server.regions) == left


def test_no_room_is_told_in_plain_words(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*arguments: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", no_room)
    with (
        share(server) as model,
        pytest.raises(InvalidRequestError, match=r"32 MiB of /dev/shm: No space left.*leave shared_memory out"),
    ):
        list(model.predict(bitmap(0)))


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_client_that_is_ended_leaves_nothing_behind(server: FakeServer, stop: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "a.bmp").write_bytes(bitmap(0))
    hold = threading.Event()
    server.delay = lambda images: (hold.wait(20), None)[1]
    command = [sys.executable, "-m", "mlcls_client", "predict", NAME, str(tmp_path), "--url", server.url]
    process = subprocess.Popen([*command, "--shared-memory", "--admin-key", KEY], stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: server.in_flight > 0)
        process.send_signal(stop)
        process.wait(15)
    finally:
        hold.set()
        process.kill()
    assert left_behind(process.pid) == []
