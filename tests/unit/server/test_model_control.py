"""Model control over connections that break."""

from __future__ import annotations

import socket
import struct

import pytest

from mlcls.errors import ModelControlError
from mlcls.server.model_control import ModelControl
from support.quiet_http import QuietHandler, serve_http


@pytest.mark.parametrize("lost", [1, 2])
def test_a_lost_connection_is_tried_once_more(lost: int) -> None:
    paths = []

    class _Handler(QuietHandler):
        def do_POST(self) -> None:  # noqa: N802  # http.server's name
            paths.append(self.path)
            if len(paths) <= lost:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
                self.connection.close()
                self.close_connection = True
            else:
                self.reply(200)

    with serve_http(_Handler) as port:
        control = ModelControl(f"127.0.0.1:{port}", timeout_s=20)
        if lost == 1:
            control.unload("cat")
        else:
            with pytest.raises(ModelControlError, match="No answer from Triton's HTTP API"):
                control.unload("cat")
    assert paths == ["/v2/repository/models/cat/unload"] * 2
