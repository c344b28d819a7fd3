"""Fetch a model file from an http(s) URL into a cache folder, resuming an interrupted download.

Next to a cached file is `<name>.lock` (kept); an interrupted download leaves `<name>.part` and `<name>.part.json`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mlcls.base.files import sha256_of
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


@dataclasses.dataclass(frozen=True)
class _Version:
    """The version of a URL's content that the bytes of a `.part` file belong to."""

    url: str
    etag: str | None
    last_modified: str | None
    total_bytes: int | None

    @property
    def validator(self) -> str | None:
        """Value for If-Range, which accepts no weak ETag (RFC 9110, 13.1.5); None if the file cannot be resumed."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.last_modified


@dataclasses.dataclass(frozen=True)
class _Job:
    """One file to fetch, and what it must be."""

    url: str
    shown_url: str
    target: Path
    max_bytes: int
    expected_sha256: str | None
    expected_size: int | None
    progress: bool | None

    def beside(self, suffix: str) -> Path:
        return self.target.with_name(self.target.name + suffix)

    def error(self, came: str) -> DownloadError:
        """Return the error, in one line: what was tried, what came, what to do."""
        return DownloadError(
            f"Could not download {self.shown_url}: {one_line(came)}. Without network access, download this URL "
            f"on another machine and pass the file or its folder (mlcls import /path/to/{_file_name(self.url)}), or "
            f"set MLCLS_CACHE_DIR to a cache that holds {self.target.name}."
        )

    def kept(self) -> tuple[_Version | None, int]:
        """Return version and size in bytes of the `.part` file; (None, 0) if there is none that can be resumed."""
        with contextlib.suppress(FileNotFoundError, ValueError, TypeError):
            version = _Version(**json.loads(self.beside(".part.json").read_text(encoding="utf-8")))
            size = self.beside(".part").stat().st_size
            typed = all(map(isinstance, dataclasses.astuple(version), (str, str | None, str | None, int | None)))
            if typed and version.url == self.shown_url and version.validator and size:
                return version, size
        return None, 0

    def discard(self) -> None:
        self.beside(".part").unlink(missing_ok=True)
        self.beside(".part.json").unlink(missing_ok=True)

    def size_defect(self, size: int) -> str | None:
        """Return what is wrong with this size in bytes; None if nothing is."""
        if 0 < size <= self.max_bytes and self.expected_size in (None, size):
            return None
        return f"{size} bytes, expected {self.expected_size or 'at least 1'} and at most {self.max_bytes}"

    def defect(self, path: Path) -> str | None:
        """Return what is wrong with a complete file; None if nothing is."""
        if (defect := self.size_defect(path.stat().st_size)) or not self.expected_sha256:
            return defect
        digest, wanted = sha256_of(path), self.expected_sha256.lower()
        return None if digest == wanted else f"SHA-256 {digest}, expected {wanted}"

    def is_cached(self) -> bool:
        return self.target.is_file() and self.defect(self.target) is None


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


def fetch(
    url: str,
    *,
    max_bytes: int = MAX_BYTES,
    expected_sha256: str | None = None,
    expected_size: int | None = None,
    transport: httpx.BaseTransport | None = None,
    progress: bool | None = None,
) -> Path:
    """Download a file into the cache, or find it there without network access; return its path, `cache_path(url)`.

    An interrupted download is resumed if the server's file is still the same. After a lost connection, HTTP 5xx, 408
    or 429 the download is retried, for `ATTEMPTS` attempts in all. If another process is fetching the same URL, wait
    for it. Proxy variables apply.

    Args:
        url: http or https URL; up to `MAX_REDIRECTS` redirects are followed, to http and https only.
        max_bytes: Largest file that is accepted.
        expected_sha256: Hexadecimal SHA-256 that the file must have; a cached file with another is fetched again.
        expected_size: Size in bytes that the file must have; likewise.
        transport: httpx transport to use instead of the network.
        progress: Whether to show a progress bar on stderr; None shows it if stderr is a terminal.

    Raises:
        DownloadError: The download failed; the message is one line and says what to do offline.
    """
    if not re.fullmatch(r"(?i)https?://[^/?#\s]+([/?#]\S*)?", url) or not url.isprintable():
        raise DownloadError(f"Expected an http:// or https:// URL, got {url!r}; a local file is given by its path.")
    shown_url = re.sub(r"(?<=://)[^/?#]*@", "", url)  # without user name and password
    job = _Job(url, shown_url, cache_path(url), max_bytes, expected_sha256, expected_size, progress)
    if expected_sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", expected_sha256):
        raise job.error(f"expected_sha256 must be 64 hexadecimal digits, got {expected_sha256!r}")
    try:
        if not job.is_cached():
            job.target.parent.mkdir(parents=True, exist_ok=True)
            with job.beside(".lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not job.is_cached():
                    _download(job, transport)
    except OSError as error:
        came = f"the cache folder {job.target.parent} cannot be used ({error}); MLCLS_CACHE_DIR can name another"
        raise job.error(came) from error
    return job.target


def _file_name(url: str) -> str:
    """Return the last component of the URL's path, reduced to characters that are safe in file names and messages."""
    name = re.split(r"[?#]", url)[0].rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".-") or "download"


def _download(job: _Job, transport: httpx.BaseTransport | None) -> None:
    """Download the file to its target in at most `ATTEMPTS` attempts; the caller holds the lock."""
    import httpx

    try:
        client = httpx.Client(transport=transport, timeout=httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S))
    except (ImportError, ValueError, OSError, httpx.InvalidURL) as error:
        raise job.error(f"the environment's proxy or certificate settings cannot be used ({error})") from error
    last = ""
    with client:
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(FIRST_BACKOFF_S * 2 ** (attempt - 1))
            try:
                _land(job, resumed=_transfer(client, job))
                return
            except (_RetryError, httpx.NetworkError, httpx.RemoteProtocolError, httpx.ReadTimeout) as error:
                last = str(error) or type(error).__name__
            except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:  # ValueError: a bad host name
                raise job.error(str(error) or type(error).__name__) from error
    known, size = job.kept()
    if known:
        last += f"; {size} of {known.total_bytes or 'unknown'} bytes are kept and the next run resumes there"
    raise job.error(f"{ATTEMPTS} attempts failed, the last with: {last}")


def _transfer(client: httpx.Client, job: _Job) -> bool:
    """Request once and write what is missing to the `.part` file; return whether a part of it was there before."""
    known, start = job.kept()
    if known and start == known.total_bytes:
        return True
    # The bytes are stored as they travel: sizes, ranges and hashes mean nothing for a compressed body.
    headers = {"Accept-Encoding": "identity"}
    if known and known.validator:
        headers |= {"Range": f"bytes={start}-", "If-Range": known.validator}
    with contextlib.closing(_open(client, job, headers)) as response:
        status = response.status_code
        if status == 200:
            start, version = 0, _version(job, response)
        elif status == 206 or (status == 416 and known):
            version = _resume(job, response, known, start)
        else:
            came = f"HTTP {status} {response.reason_phrase}"
            raise _RetryError(came) if status >= 500 or status in (408, 429) else job.error(came)
        if status != 416:
            _receive(job, response, version, start)
    return start > 0


def _open(client: httpx.Client, job: _Job, headers: dict[str, str]) -> httpx.Response:
    """GET with streaming. httpx itself would read the whole body of each redirect and not check its scheme."""
    request = client.build_request("GET", job.url, headers=headers)
    for _ in range(MAX_REDIRECTS + 1):
        if request.url.scheme not in ("http", "https"):
            raise job.error(f"it redirects to {str(request.url)!r}, expected http or https")
        response = client.send(request, stream=True)
        if response.next_request is None:
            return response
        response.close()
        request = response.next_request
    raise job.error(f"it redirects more than {MAX_REDIRECTS} times")


def _version(job: _Job, response: httpx.Response) -> _Version:
    """Check the headers of a 200 response and return the version that they describe."""
    headers = response.headers
    if headers.get("Content-Type", "").lower().startswith("text/html"):
        raise job.error("the server sent an HTML page instead of a file (a network's login page, or a wrong URL)")
    length = headers.get("Content-Length")
    if length is None and "Transfer-Encoding" not in headers and job.expected_size is None and not job.expected_sha256:
        raise job.error("the server reports no size, so a complete file cannot be told from a truncated one")
    return _Version(job.shown_url, headers.get("ETag"), headers.get("Last-Modified"), int(length) if length else None)


def _resume(job: _Job, response: httpx.Response, known: _Version | None, start: int) -> _Version:
    """Check the headers of a 206 or 416 response against the `.part` file; if they contradict it, discard the file."""
    headers, value = response.headers, response.headers.get("Content-Range", "")
    # 416 with the size of the `.part` file means that it is complete; its total size was not known before.
    pattern = r"bytes \*/(?P<total>{0})" if response.status_code == 416 else r"bytes {0}-\d+/(?P<total>\d+|\*)"
    if known and (fits := re.fullmatch(pattern.format(start), value)):
        total = None if fits["total"] == "*" else int(fits["total"])
        came = (headers.get("ETag"), headers.get("Last-Modified"), total)
        pairs = zip((known.etag, known.last_modified, known.total_bytes), came, strict=True)
        if all(None in pair or pair[0] == pair[1] for pair in pairs):
            return dataclasses.replace(known, total_bytes=known.total_bytes or total)
    job.discard()
    raise _RetryError(f"HTTP {response.status_code} with Content-Range {value!r}, expected the bytes from {start} on")


def _receive(job: _Job, response: httpx.Response, version: _Version, start: int) -> None:
    from tqdm import tqdm

    size, total = start, version.total_bytes
    if total is not None and (defect := job.size_defect(total)):
        raise job.error(f"the server offers {defect}")
    limit = job.max_bytes if total is None else total
    if not start:
        job.discard()
        job.beside(".part.json").write_text(json.dumps(dataclasses.asdict(version), indent=1) + "\n", encoding="utf-8")
    hide = None if job.progress is None else not job.progress  # tqdm's None: unless stderr is a terminal
    bar = tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=_file_name(job.url), disable=hide)
    with bar, job.beside(".part").open("ab") as file:
        for chunk in response.iter_raw():
            size += len(chunk)
            if size > limit:
                job.discard()
                raise job.error(f"more than {limit} bytes came")
            file.write(chunk)
            bar.update(len(chunk))
    if total is not None and size < total:
        raise _RetryError(f"the connection ended at byte {size} of {total}")


def _land(job: _Job, *, resumed: bool) -> None:
    """Check the complete `.part` file and rename it to its target."""
    if defect := job.defect(part := job.beside(".part")):
        job.discard()  # if resumed, it may be a mixture of two versions with one validator: a whole download fixes that
        raise _RetryError(f"the resumed file has {defect}") if resumed else job.error(f"the file has {defect}")
    with part.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(part, job.target)
    job.discard()
