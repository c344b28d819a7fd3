"""A server that was never started."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlcls.errors import ServerError
from mlcls.server.options import ServerOptions
from mlcls.server.process import TritonServer


def test_a_server_that_was_not_started_has_nothing_to_end(tmp_path: Path) -> None:
    server = TritonServer(ServerOptions(tmp_path / "missing", ("animals",)))
    server.stop()
    server.abandon(1.0)
    server.kill()
    assert server.http_url == "127.0.0.1:8000"
    with pytest.raises(ServerError, match="Expected a running server, got one that was not started"):
        server.wait(0)


def test_a_start_that_fails_leaves_a_server_that_does_not_run(tmp_path: Path) -> None:
    server = TritonServer(ServerOptions.on_free_ports(tmp_path))
    with pytest.raises(ServerError, match="Expected at least one model to serve, got none"):
        server.start()
    with pytest.raises(ServerError, match="Expected a running server"):
        _ = server.pid
