"""Images at http(s) addresses, fetched into memory within limits of size, time and redirects."""

from __future__ import annotations

import http.client
import queue
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit

from mlcls_client.base.text import safe_file_name
from mlcls_client.errors import InputError, InvalidRequestError

_BLOCK_BYTES: Final = 65536


@dataclass(frozen=True)
class FetchLimits:
    """What a fetch may take.

    Attributes:
        max_bytes: Size of the file, at most.
        timeout_s: Time of the whole fetch, redirects included, seconds.
        max_redirects: How many redirects are followed.

    Examples:
        >>> with create_model("PP-LCNet_x1_0_ML", url=server.url) as model:
        ...     results = model.predict(photo_url, fetch_limits=FetchLimits(max_bytes=10))
        ...     next(results)
        Traceback (most recent call last):
            ...
        mlcls_client.errors.InputError: expected at most 10 bytes at 'http://.../photo.png', it has ...
    """

    max_bytes: int = 64 * 2**20
    timeout_s: float = 30.0
    max_redirects: int = 5

    def __post_init__(self) -> None:
        """Refuse limits that let nothing through.

        Raises:
            InvalidRequestError: A limit is not as described.
        """
        if self.max_bytes < 1 or not 0 < self.timeout_s < float("inf") or self.max_redirects < 0:
            raise InvalidRequestError(
                f"expected max_bytes of 1 or more, timeout_s above 0 and max_redirects of 0 or more, got {self}"
            )


DEFAULT_FETCH_LIMITS: Final = FetchLimits()


def is_url(text: str) -> bool:
    """Tell whether a text is an address, of whatever scheme, and not a path."""
    scheme, separator, _ = text.partition("://")
    return bool(separator) and scheme.isascii() and scheme.replace("+", "").isalnum()


def url_file_name(url: str) -> str:
    """Return the name of the file at an address: the last part of its path, or its host where there is none."""
    try:
        parts = urlsplit(url)
        name = unquote(parts.path.rstrip("/").rpartition("/")[2]) or parts.hostname or ""
    except ValueError:
        name = ""
    name = safe_file_name(name)
    return name if name.strip(".") else "url"


def fetch_url(url: str, limits: FetchLimits = DEFAULT_FETCH_LIMITS) -> bytes:
    """Fetch a file; the environment's proxies (`https_proxy`, `no_proxy`) are used.

    Raises:
        InputError: Not an http(s) address, no file there, or more than the limits allow; the message tells what came.
    """
    address = _quoted_address(url)
    outcome: queue.SimpleQueue[bytes | Exception] = queue.SimpleQueue()
    # A thread, because neither a slow name server nor a server that sends its header byte by byte is held to a
    # socket's time limit.
    threading.Thread(target=_fetch, args=(url, address, limits, outcome), daemon=True).start()
    try:
        content = outcome.get(timeout=limits.timeout_s)
    except queue.Empty:
        raise _late(url, limits) from None
    if isinstance(content, Exception):
        raise content
    return content


def _quoted_address(url: str) -> str:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise InputError(f"expected an http or https address of an image, got one that is malformed: {error}") from None
    if parts.scheme.lower() not in ("http", "https") or not host:
        raise InputError(
            f"expected a path, or an http or https address, got {url!r}; download the image first, and give its path"
        )
    if parts.username is not None or parts.password is not None:
        raise InputError(f"expected an address without user name and password, got one at {host!r} that has them")
    return parts._replace(
        path=quote(parts.path, safe="/%:@!$&'()*+,;=~"), query=quote(parts.query, safe="/%?:@!$&'()*+,;=~"), fragment=""
    ).geturl()


def _fetch(url: str, address: str, limits: FetchLimits, outcome: queue.SimpleQueue[bytes | Exception]) -> None:
    try:
        outcome.put(_download(url, address, limits))
    except InputError as error:
        outcome.put(error)
    except Exception as error:
        outcome.put(_fetch_error(url, limits, error))


def _download(url: str, address: str, limits: FetchLimits) -> bytes:
    deadline = time.monotonic() + limits.timeout_s
    with _make_opener(limits).open(address, timeout=limits.timeout_s) as response:
        text = response.headers.get("Content-Length")
        expected = int(text) if text is not None and text.isdecimal() else None
        if expected is not None and expected > limits.max_bytes:
            raise InputError(f"expected at most {limits.max_bytes} bytes at {url!r}, it has {expected}")
        content = bytearray()
        while expected is None or len(content) < expected:
            block = response.read1(_BLOCK_BYTES)
            if not block:
                break
            content += block
            if len(content) > limits.max_bytes:
                raise InputError(f"expected at most {limits.max_bytes} bytes at {url!r}, more came")
            if time.monotonic() > deadline:
                raise TimeoutError
    if expected is not None and len(content) < expected:
        raise InputError(f"expected {expected} bytes from {url!r}, the connection ended after {len(content)}")
    if not content:
        raise InputError(f"expected an image at {url!r}, got an empty file")
    return bytes(content)


def _make_opener(limits: FetchLimits) -> urllib.request.OpenerDirector:
    # Not build_opener: it can read file, ftp and data addresses too, which a redirect might lead to.
    opener = urllib.request.OpenerDirector()
    opener.addheaders = [("User-Agent", "mlcls-client")]
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(limits.max_redirects),
    ):
        opener.add_handler(handler)
    return opener


class _Redirects(urllib.request.HTTPRedirectHandler):
    def __init__(self, max_redirects: int) -> None:
        self._left = max_redirects

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        self._left -= 1
        if self._left < 0:
            raise urllib.error.URLError("too many redirects")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _fetch_error(url: str, limits: FetchLimits, error: Exception) -> InputError:
    if isinstance(error, urllib.error.HTTPError):
        return InputError(f"expected an image at {url!r}, the server answered {error.code} {error.reason}")
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, TimeoutError):
        return _late(url, limits)
    if isinstance(error, http.client.HTTPException):
        reason = f"no answer of a web server ({type(error).__name__}: {error})"
    return InputError(f"cannot fetch {url!r}: {reason}")


def _late(url: str, limits: FetchLimits) -> InputError:
    return InputError(f"expected the image at {url!r} within {limits.timeout_s:g} s, it was not there by then")
