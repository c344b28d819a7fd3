"""An HTTP server for tests that says nothing on the screen, whatever its clients do to it."""

from __future__ import annotations

from http.server import ThreadingHTTPServer
from typing import Any


class QuietHttpServer(ThreadingHTTPServer):
    """Ends without waiting for requests in flight."""

    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves early is what some tests are about."""
