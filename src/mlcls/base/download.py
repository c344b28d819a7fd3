"""Fetch a model file from an http(s) URL into a cache folder, resuming an interrupted download.

Next to a cached file is `<name>.lock` (kept); an interrupted download leaves `<name>.part` and `<name>.part.json`.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mlcls.base.text import one_line
from mlcls.errors import DownloadError

if TYPE_CHECKING:
    import httpx

MAX_BYTES: Final = 4 * 1024**3
CONNECT_TIMEOUT_S: Final = 10.0
READ_TIMEOUT_S: Final = 30.0
ATTEMPTS: Final = 4
FIRST_BACKOFF_S: Final = 0.5
MAX_REDIRECTS: Final = 5


class _RetryError(Exception):
    """An attempt failed in a way that a retry may fix."""


class _Download:
    """A URL, its place in the cache, and the bytes of an earlier attempt in a `.part` file."""

    def __init__(self, url: str, usage: str) -> None:
        self.usage = usage
        self.url, self.target, self.shown_name = url, cache_path(url), _file_name(url)
        self.part, self.sidecar, self.lock = (
            self.target.with_name(self.target.name + suffix) for suffix in (".part", ".part.json", ".lock")
        )

    def error(self, came: str) -> DownloadError:
        """Return the error, in one line: what was tried, what came, what to do."""
        shown_url = re.sub(r"(?<=://)[^/?#]*@", "", self.url)  # without user name and password
        return DownloadError(
            f"Could not download {shown_url}: {one_line(came)}. Without network access, download this URL "
            f"on another machine and pass the file ({self.usage.format(f'/path/to/{self.shown_name}')}), or set "
            f"MLCLS_CACHE_DIR to a cache that holds {self.target.name}."
        )

    def kept(self) -> tuple[int, int, str]:
        """Return the `.part` file's size, the whole file's size and its validator; (0, 0, "") if it is of no use."""
        with contextlib.suppress(FileNotFoundError, ValueError, TypeError, KeyError):
            content = json.loads(self.sidecar.read_text(encoding="utf-8"))
            total, validator, size = content["total_bytes"], content["validator"], self.part.stat().st_size
            if isinstance(total, int) and isinstance(validator, str) and 0 < size <= total:
                return size, total, validator
        return 0, 0, ""

    def discard(self) -> None:
        self.part.unlink(missing_ok=True)
        self.sidecar.unlink(missing_ok=True)

    def fetch(self) -> None:
        """Download the file to its target in at most `ATTEMPTS` attempts; the caller holds the lock."""
        import httpx

        try:
            client = httpx.Client(timeout=httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S))
        except (ImportError, ValueError, OSError, httpx.InvalidURL) as error:
            raise self.error(f"the environment's proxy or certificate settings cannot be used ({error})") from error
        last = ""
        with client:
            for attempt in range(ATTEMPTS):
                if attempt:
                    time.sleep(FIRST_BACKOFF_S * 2 ** (attempt - 1))
                try:
                    self._transfer(client)
                    with self.part.open("rb") as file:
                        os.fsync(file.fileno())
                    os.replace(self.part, self.target)
                    self.discard()
                    return
                except (_RetryError, httpx.NetworkError, httpx.RemoteProtocolError, httpx.ReadTimeout) as error:
                    last = str(error) or type(error).__name__
                except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:  # ValueError: a bad host name
                    raise self.error(str(error) or type(error).__name__) from error
        size, total, _ = self.kept()
        if size:
            last += f"; {size} of {total} bytes are kept and the next run resumes there"
        raise self.error(f"{ATTEMPTS} attempts failed, the last with: {last}")

    def _transfer(self, client: httpx.Client) -> None:
        """Request once and write what is missing to the `.part` file."""
        start, total, validator = self.kept()
        if start and start == total:
            return
        # The bytes are stored as they travel: sizes and ranges mean nothing for a compressed body.
        headers = {"Accept-Encoding": "identity"}
        if start:
            headers |= {"Range": f"bytes={start}-", "If-Range": validator}
        with contextlib.closing(self._open(client, headers)) as response:
            status, content_range = response.status_code, response.headers.get("Content-Range", "")
            if status == 200:
                start, total = 0, self._begin(response)
            elif start and status in (206, 416):
                if status == 416 or not re.fullmatch(rf"bytes {start}-{total - 1}/({total}|\*)", content_range):
                    self.discard()
                    raise _RetryError(f"HTTP {status} with Content-Range {content_range!r}, expected what is missing")
            else:
                came = f"HTTP {status} {response.reason_phrase}"
                raise _RetryError(came) if status >= 500 or status in (408, 429) else self.error(came)
            self._receive(response, start, total)

    def _open(self, client: httpx.Client, headers: dict[str, str]) -> httpx.Response:
        """GET with streaming. httpx itself would read the whole body of each redirect."""
        request = client.build_request("GET", self.url, headers=headers)
        for _ in range(MAX_REDIRECTS + 1):
            response = client.send(request, stream=True)
            if response.next_request is None:
                return response
            response.close()
            request = response.next_request
        raise self.error(f"it redirects more than {MAX_REDIRECTS} times")

    def _begin(self, response: httpx.Response) -> int:
        """Check the headers of a whole file, note what is needed to resume it, and return its size; 0 if not told."""
        headers = response.headers
        if headers.get("Content-Type", "").lower().startswith("text/html"):
            raise self.error("the server sent an HTML page instead of a file (a network's login page, or a wrong URL)")
        length = headers.get("Content-Length")
        if length is None and "Transfer-Encoding" not in headers:
            raise self.error("the server reports no size, so a complete file cannot be told from a truncated one")
        if length is not None and not 0 < int(length) <= MAX_BYTES:
            raise self.error(f"the server offers {length} bytes, expected 1 to {MAX_BYTES}")
        self.discard()
        # If-Range accepts no weak ETag (RFC 9110, 13.1.5).
        etag = headers.get("ETag", "W/")
        validator = headers.get("Last-Modified") if etag.startswith("W/") else etag
        if length is not None and validator is not None:
            content = {"total_bytes": int(length), "validator": validator}
            self.sidecar.write_text(json.dumps(content) + "\n", encoding="utf-8")
        return int(length or 0)

    def _receive(self, response: httpx.Response, size: int, total: int) -> None:
        """Append the body to the `.part` file, which has `size` of the file's `total` bytes; 0 if that is not known."""
        from tqdm import tqdm

        # disable=None: unless stderr is a terminal
        bar = tqdm(total=total or None, initial=size, unit="B", unit_scale=True, desc=self.shown_name, disable=None)
        with bar, self.part.open("ab") as file:
            for chunk in response.iter_raw():
                size += len(chunk)
                if size > (total or MAX_BYTES):
                    self.discard()
                    raise self.error(f"more than {total or MAX_BYTES} bytes came")
                file.write(chunk)
                bar.update(len(chunk))
        if size < (total or 1):
            raise _RetryError(f"{size} bytes came, expected {total or 'at least 1'}")


def cache_dir() -> Path:
    """Return the folder of downloads: `$MLCLS_CACHE_DIR`, `$XDG_CACHE_HOME/mlcls` (if absolute) or `~/.cache/mlcls`."""
    try:
        if own := os.environ.get("MLCLS_CACHE_DIR"):
            return Path(own).expanduser()
        base = Path(os.environ.get("XDG_CACHE_HOME", ""))
        return (base if base.is_absolute() else Path("~/.cache").expanduser()) / "mlcls"
    except RuntimeError as error:
        raise DownloadError("Expected a home folder for the cache, got none; set MLCLS_CACHE_DIR.") from error


def cache_path(url: str) -> Path:
    """Return where `fetch` keeps the file of a URL: a readable name, a short hash of the URL and the file's suffix."""
    name = _file_name(url)
    suffix = "".join(re.findall(r"(?:\.tar)?\.[A-Za-z0-9]{1,10}$", name))
    return cache_dir() / f"{name.removesuffix(suffix)[:100]}-{hashlib.sha256(url.encode()).hexdigest()[:12]}{suffix}"


def fetch(url: str, usage: str = "{}") -> Path:
    """Download a file into the cache, or find it there without network access; return its path, `cache_path(url)`.

    An interrupted download is resumed if the server's file is still the same. After a lost connection, HTTP 5xx, 408
    or 429 the download is retried, for `ATTEMPTS` attempts in all. If another process is fetching the same URL, wait
    for it. Up to `MAX_REDIRECTS` redirects are followed, to http and https only. Proxy variables apply. If stderr is a
    terminal, it shows a progress bar.

    Args:
        url: An http or https URL.
        usage: How a user passes a local file, `{}`, instead; for the error's text.

    Raises:
        DownloadError: The download failed, or the file has more than `MAX_BYTES`; the message is one line and says what
            to do offline.
    """
    if not re.fullmatch(r"(?i)https?://[^/?#\s]+([/?#]\S*)?", url) or not url.isprintable():
        raise DownloadError(f"Expected an http:// or https:// URL, got {url!r}; a local file is given by its path.")
    download = _Download(url, usage)
    target = download.target
    try:
        if not target.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            with download.lock.open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not target.is_file():
                    download.fetch()
    except OSError as error:
        came = f"the cache folder {target.parent} cannot be used ({error}); MLCLS_CACHE_DIR can name another"
        raise download.error(came) from error
    return target


def _file_name(url: str) -> str:
    """Return the last component of the URL's path, reduced to characters that are safe in file names and messages."""
    name = re.split(r"[?#]", url)[0].rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".-") or "download"
