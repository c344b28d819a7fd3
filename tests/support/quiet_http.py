"""An HTTP server for tests that prints nothing, whatever its clients do."""

from __future__ import annotations

from http.server import ThreadingHTTPServer
from typing import Any


class QuietHttpServer(ThreadingHTTPServer):
    """A server that ends without waiting for requests in flight."""

    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore errors: in some tests, clients leave early."""
