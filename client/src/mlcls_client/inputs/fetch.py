"""Images at http(s) addresses, fetched into memory within limits on size, time and redirects."""

from __future__ import annotations

import concurrent.futures
import http.client
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit

from mlcls_client.base.text import end_sentence, safe_file_name
from mlcls_client.errors import InputError, InvalidRequestError

_BLOCK_BYTES: Final = 65536
_SCHEMES: Final = ("http", "https")


@dataclass(frozen=True)
class FetchLimits:
    """Limits of one fetch.

    Attributes:
        max_bytes: Maximum size of the file.
        timeout_s: Time limit of the whole fetch with its redirects, in seconds.
        max_redirects: How many redirects to follow.

    Examples:
        >>> with create_model("PP-LCNet_x1_0_ML", url=server.url) as model:
        ...     results = model.predict(photo_url, fetch_limits=FetchLimits(max_bytes=10))
        ...     next(results)
        Traceback (most recent call last):
            ...
        mlcls_client.errors.InputError: Expected at most 10 bytes at 'http://.../photo.png', got ...
    """

    max_bytes: int = 64 * 2**20
    timeout_s: float = 30.0
    max_redirects: int = 5

    def __post_init__(self) -> None:
        if self.max_bytes < 1 or not 0 < self.timeout_s < float("inf") or self.max_redirects < 0:
            raise InvalidRequestError(
                f"Expected max_bytes of 1 or more, timeout_s above 0 and max_redirects of 0 or more, got {self}."
            )


DEFAULT_FETCH_LIMITS: Final = FetchLimits()


def is_url(text: str) -> bool:
    """Return whether a text is an address of any scheme, and not a path."""
    scheme, separator, _ = text.partition("://")
    return bool(separator) and scheme.isascii() and scheme.replace("+", "").isalnum()


def url_file_name(url: str) -> str:
    """Return the name of the file at an address: the last part of its path, or else its host."""
    try:
        parts = urlsplit(url)
        name = unquote(parts.path.rstrip("/").rpartition("/")[2]) or parts.hostname or ""
    except ValueError:
        name = ""
    name = safe_file_name(name)
    return name if name.strip(".") else "url"


def fetch_url(url: str, limits: FetchLimits = DEFAULT_FETCH_LIMITS) -> bytes:
    """Fetch a file, through the environment's proxies (`https_proxy`, `no_proxy`).

    Raises:
        InputError: It is not an http(s) address, there is no file, or a limit is exceeded; the message says what came.
    """
    address = _quoted_address(url)
    outcome: Future[bytes] = Future()

    def fetch() -> None:
        try:
            outcome.set_result(_download(url, address, limits))
        except Exception as error:
            outcome.set_exception(error)

    # A thread, because a socket's time limit stops neither a slow name server nor a server that sends its header one
    # byte at a time.
    threading.Thread(target=fetch, daemon=True).start()
    try:
        return outcome.result(limits.timeout_s)
    except InputError:
        raise
    except Exception as error:
        raise InputError(_fetch_message(url, limits, error)) from error


def _quoted_address(url: str) -> str:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise InputError(f"Expected an http or https address of an image, got a malformed one: {error}.") from None
    if parts.scheme not in _SCHEMES or not host:
        raise InputError(
            f"Expected a path, or an http or https address, got {url!r}; download the image first and pass its path."
        )
    if parts.username is not None or parts.password is not None:
        raise InputError(f"Expected an address without user name and password, got one at {host!r} with them.")
    return parts._replace(
        path=quote(parts.path, safe="/%:@!$&'()*+,;=~"), query=quote(parts.query, safe="/%?:@!$&'()*+,;=~"), fragment=""
    ).geturl()


def _download(url: str, address: str, limits: FetchLimits) -> bytes:
    deadline = time.monotonic() + limits.timeout_s
    opener = urllib.request.build_opener(_Redirects(limits.max_redirects))
    opener.addheaders = [("User-Agent", "mlcls-client")]
    with opener.open(address, timeout=limits.timeout_s) as response:
        text = response.headers.get("Content-Length")
        expected = int(text) if text is not None and text.isdecimal() else None
        if expected is not None and expected > limits.max_bytes:
            raise InputError(f"Expected at most {limits.max_bytes} bytes at {url!r}, got {expected}.")
        content = bytearray()
        while expected is None or len(content) < expected:
            block = response.read1(_BLOCK_BYTES)
            if not block:
                break
            content += block
            if len(content) > limits.max_bytes:
                raise InputError(f"Expected at most {limits.max_bytes} bytes at {url!r}, got more.")
            if time.monotonic() > deadline:
                raise TimeoutError
    if expected is not None and len(content) < expected:
        raise InputError(f"Expected {expected} bytes from {url!r}, but the connection ended after {len(content)}.")
    if not content:
        raise InputError(f"Expected an image at {url!r}, got an empty file.")
    return bytes(content)


class _Redirects(urllib.request.HTTPRedirectHandler):
    def __init__(self, max_redirects: int) -> None:
        self._left = max_redirects

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        self._left -= 1
        if self._left < 0:
            raise urllib.error.URLError("too many redirects")
        if urlsplit(newurl).scheme not in _SCHEMES:
            raise urllib.error.URLError("redirected to an address that is not http or https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _fetch_message(url: str, limits: FetchLimits, error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"Expected an image at {url!r}, but the server answered {error.code} {error.reason}."
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, TimeoutError | concurrent.futures.TimeoutError):  # two classes before Python 3.11
        return f"Expected the image at {url!r} within {limits.timeout_s:g} s, but it did not arrive; raise timeout_s."
    if isinstance(error, http.client.HTTPException):
        reason = f"not an answer of a web server ({type(error).__name__}: {error})"
    return end_sentence(f"Cannot fetch {url!r}: {reason}")
