"""Triton's HTTP API: its address, one request at a time, and why a request failed."""

from __future__ import annotations

import http.client
import ipaddress
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from urllib.parse import quote, urlsplit

from mlcls.errors import ServerError


class NoAnswerError(ServerError):
    """No answer came over HTTP."""


class ConnectionLostError(NoAnswerError):
    """The server closed the connection before it answered."""


class HttpStatusError(ServerError):
    """The server answered with an error, `status`, and Triton's reason, which may be empty."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"HTTP status {status}, {reason or 'no text'}")
        self.status, self.reason = status, reason


class HttpApi:
    """The HTTP API of one server, at `host:port` or a URL; a ServerError if it is neither.

    With `allow_proxy`, another machine is asked through the environment's proxy; this machine never is.

    Attributes:
        url: `http://host:port`.
        is_local: Whether the address is of this machine only.
    """

    def __init__(self, url: str, allow_proxy: bool = False) -> None:
        parts = urlsplit(url if "//" in url else f"http://{url}")
        try:
            host, _ = parts.hostname, parts.port
        except ValueError:  # a port that is no number or out of range
            host = None
        if not host or parts.scheme not in ("http", "https"):
            raise ServerError(f"Expected the address of Triton's HTTP API like 127.0.0.1:8000, got {url!r}.")
        self.url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        self.is_local = _is_local(host)
        is_direct = self.is_local or host == "0.0.0.0" or not allow_proxy
        self._opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if is_direct else []))

    def request(
        self, path: str, timeout_s: float, data: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> bytes:
        """Send a request, a POST if it has data, and return the body of the answer.

        Raises:
            HttpStatusError: The server answered with an error.
            NoAnswerError: It did not answer; a ConnectionLostError if it closed the connection.
        """
        request = urllib.request.Request(self.url + path, data=data, headers=dict(headers or {}))
        try:
            with self._opener.open(request, timeout=timeout_s) as response:
                return bytes(response.read())
        except urllib.error.HTTPError as error:
            with error:
                raise HttpStatusError(error.code, _read_reason(error)) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            if isinstance(reason, TimeoutError):
                raise NoAnswerError(f"timed out after {timeout_s:g} s") from None
            lost = isinstance(reason, ConnectionError) and not isinstance(reason, ConnectionRefusedError)
            raise (ConnectionLostError if lost else NoAnswerError)(str(reason) or type(reason).__name__) from None

    def is_ready(self, model: str, version: int | None = None, timeout_s: float = 5.0) -> bool:
        """Return whether the server reports a model, or one version of it, as ready; False if it does not answer."""
        of_version = "" if version is None else f"/versions/{version}"
        try:
            self.request(f"/v2/models/{quote(model, safe='')}{of_version}/ready", timeout_s)
        except (HttpStatusError, NoAnswerError):
            return False
        return True


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _read_reason(error: urllib.error.HTTPError) -> str:
    """Return the text of Triton's `{"error": ...}`, or the whole body if it is something else."""
    try:
        text = error.read().decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return ""
    try:
        return str(json.loads(text)["error"])
    except (ValueError, KeyError, TypeError):
        return text
