"""When a server is restarted, after which pauses, and when no longer."""

from __future__ import annotations

import re
import time
from typing import cast

import pytest

from mlcls.errors import RepositoryError, RestartsExhaustedError, ServerError, UnhealthyServerError
from mlcls.server.process import TritonServer
from mlcls.server.supervision import Restarts, keep_serving


def test_pauses_double_and_are_short_again_after_good_times() -> None:
    restarts = Restarts(100, 600, 0.5)
    assert [restarts.note("", 0.0) for _ in range(9)] == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    assert restarts.note("", healthy_s=29) == 30
    assert restarts.note("", healthy_s=31) == 0.5
    assert restarts.note("", healthy_s=31) == 0.5, "faults that are far from one another cost no patience"
    assert restarts.note("", healthy_s=1) == 1


def test_it_gives_up_after_too_many_within_the_window() -> None:
    times_s = iter([0, 25, 50, 75, 75])
    restarts = Restarts(3, 60, 0.5, lambda: next(times_s))
    for _ in range(4):  # the first is out of the window at the fourth
        restarts.note("", 0.0)
    words = "restarted 3 times within 60 s, the most that --max-restarts allows. The last reason: a step hangs"
    with pytest.raises(RestartsExhaustedError, match=re.escape(words)) as raised:
        restarts.note("a step hangs", 0.0)
    assert raised.value.exit_code == 3


def test_the_date_moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    restarts = Restarts(1, 60, 0.5)
    restarts.note("", 0.0)
    monkeypatch.setattr(time, "time", lambda: 4e9)
    with pytest.raises(RestartsExhaustedError):
        restarts.note("", 0.0)


class Server:
    """Starts unless it has an error, and records how it was ended."""

    def __init__(self, error: Exception | None = None) -> None:
        self.calls: list[str] = []
        self._error = error

    def start(self) -> None:
        if self._error is not None:
            raise self._error

    def abandon(self, drain_timeout_s: float) -> None:
        self.calls.append("abandon")

    def stop(self) -> None:
        self.calls.append("stop")


class StopError(BaseException):
    pass


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)


def run(servers: list[Server], faults: list[BaseException], restarts: Restarts | None) -> list[str]:
    """Start the servers in turn, each ending with the next fault, and return the printed lines."""
    lines: list[str] = []
    starting, failing = iter(servers), iter(faults)

    def serve(_: TritonServer) -> None:
        raise next(failing)

    with pytest.raises(StopError):
        keep_serving(lambda: cast(TritonServer, next(starting)), serve, restarts, lines.append)
    return lines


def test_it_starts_again_after_each_kind_of_fault() -> None:
    servers = [Server(), Server(RepositoryError("damaged.")), Server(), Server()]
    lines = run(
        servers,
        [UnhealthyServerError("a step hangs."), ServerError("ended."), StopError()],
        Restarts(10, 600, 0.5),
    )
    assert lines[0] == "a step hangs. Restart 1 in 0.5 s."
    assert lines[1] == "damaged. Restart 2 in 1.0 s."
    assert lines[2].startswith("Ready again, ")
    assert lines[3] == "ended. Restart 3 in 2.0 s."
    assert lines[4].startswith("Ready again, ")
    assert [server.calls for server in servers] == [["abandon", "stop"], ["stop"], ["abandon", "stop"], ["stop"]]


def test_a_server_that_never_started_is_not_tried_again() -> None:
    with pytest.raises(ServerError, match="Port 8000"):
        run([Server(ServerError("Port 8000"))], [], Restarts(10, 600, 0.5))


def test_without_supervision_a_fault_ends_it() -> None:
    server = Server()

    def serve(_: TritonServer) -> None:
        raise UnhealthyServerError("a step hangs")

    with pytest.raises(UnhealthyServerError, match="a step hangs"):
        keep_serving(lambda: cast(TritonServer, server), serve, None, print)
    assert server.calls == ["abandon", "stop"]
