"""`mlcls.base.download` against a real HTTP server on the loopback interface that misbehaves on demand."""

from __future__ import annotations

import dataclasses
import fcntl
import io
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import httpx
import pytest

from mlcls.base import download
from mlcls.errors import DownloadError
from support.quiet_http import QuietHttpServer, running

CONTENT = random.Random(0).randbytes(300_000)
OTHER = random.Random(1).randbytes(300_000)
LAST = len(CONTENT) - 1
CUT_BYTES = 123_457
NAME = "PP-LCNet_x1_0_ML_infer.tar"
LEFT = f"bytes={CUT_BYTES}-"
REST = f"bytes {CUT_BYTES}-{LAST}/{len(CONTENT)}"


@dataclasses.dataclass
class Reply:
    """Where the site does something else than a good server."""

    status: int | None = None
    body: bytes | None = None
    headers: Mapping[str, str | None] = dataclasses.field(default_factory=dict)  # None leaves one out
    sent_bytes: int | None = None  # then the connection is lost
    pause_at: int | None = None  # after so many bytes, nothing comes until the gate opens


class Site(QuietHttpServer):
    """Serves `content` at every path; `script` holds a reply for each coming request, then all goes well."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.headers = {"ETag": '"v1"', "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}
        self.script: list[Reply] = []
        self.requests: list[Handler] = []
        self.gate = threading.Event()

    def url(self, path: str = f"/models/{NAME}") -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"

    def ranges(self) -> list[str | None]:
        """The Range header of each request so far."""
        return [request.headers["Range"] for request in self.requests]


class Handler(BaseHTTPRequestHandler):
    """Answers one request per connection, and keeps count of the body's bytes."""

    server: Site
    protocol_version = "HTTP/1.1"
    sent_bytes = 0

    def do_GET(self) -> None:
        site, asked = self.server, self.headers["Range"]
        site.requests.append(self)
        reply = site.script.pop(0) if site.script else Reply()
        start, status = 0, 200
        headers: dict[str, str | None] = {"Connection": "close", **site.headers}
        if asked and self.headers["If-Range"] in site.headers.values():
            start, status = int(asked.removeprefix("bytes=").removesuffix("-")), 206
            headers["Content-Range"] = f"bytes {start}-{len(site.content) - 1}/{len(site.content)}"
        body = site.content[start:] if reply.body is None else reply.body
        self.send_response(reply.status or status)
        for name, value in {**headers, "Content-Length": str(len(body)), **reply.headers}.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        for part in (body[: reply.pause_at or 0], body[reply.pause_at or 0 : reply.sent_bytes]):
            self.wfile.write(part)
            self.sent_bytes += len(part)
            if reply.pause_at is not None:
                site.gate.wait(5)

    def log_message(self, *_: Any) -> None:
        """Nothing: stderr is looked at by tests."""


CUT = Reply(sent_bytes=CUT_BYTES)
SHORT = Reply(headers={"Content-Length": "300001", "ETag": None, "Last-Modified": None})


def partial(content_range: str | None, body: bytes = CONTENT[CUT_BYTES:]) -> Reply:
    return Reply(206, body, {"Content-Range": content_range})


def chunked(body: bytes, *, ends: bool) -> Reply:
    """An answer that reports no size, with the end mark or, truncated, without it."""
    sent = f"{len(body):x}\r\n".encode() + body + b"\r\n" + (b"0\r\n\r\n" if ends else b"")
    return Reply(200, sent, {"Transfer-Encoding": "chunked", "Content-Length": None})


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Site]:
    """The server, an empty cache, no waiting between attempts and no proxy."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("MLCLS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "FIRST_BACKOFF_S", 0.0)
    with running(Site()) as server:
        yield server
        server.gate.set()


def failure(url: str) -> str:
    """The message of a failing download, after the checks that hold for all of them."""
    with pytest.raises(DownloadError) as caught:
        download.fetch(url)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"Could not download {url}: ")
    assert message.endswith(
        "Without network access, download this URL on another machine and pass the file "
        f"(/path/to/{NAME}), or set MLCLS_CACHE_DIR to a cache that holds {download.cache_path(url).name}."
    )
    assert not download.cache_path(url).exists()
    return message


def test_how_a_user_passes_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    with pytest.raises(DownloadError, match=rf"pass the file \(mlcls import /path/to/{NAME}\), or set"):
        download.fetch(f"http://127.0.0.1:1/{NAME}", "mlcls import {}")


def leftovers() -> set[str]:
    """Suffixes of what lies in the cache."""
    return {path.name.partition(".tar")[2] for path in download.cache_dir().iterdir()}


def beside(site: Site, suffix: str) -> Path:
    return download.cache_path(site.url()).with_suffix(suffix)


@pytest.fixture
def interrupted(site: Site, monkeypatch: pytest.MonkeyPatch) -> Site:
    """The site, after a run that left the first CUT_BYTES of CONTENT in the cache."""
    site.script = [CUT]
    with monkeypatch.context() as patch:
        patch.setattr(download, "ATTEMPTS", 1)
        message = failure(site.url())
    assert "1 attempts failed, the last with: peer closed connection without sending complete message body" in message
    assert f"{CUT_BYTES} of {len(CONTENT)} bytes are kept and the next run resumes there" in message
    assert leftovers() == {".lock", ".part", ".part.json"}
    assert beside(site, ".tar.part").read_bytes() == CONTENT[:CUT_BYTES]
    site.requests.clear()
    return site


# --- a file is fetched once


def test_whole_file_is_fetched_once_and_then_reused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shared cache that cannot be written needs neither the lock nor any other file to be created."""
    path = download.fetch(site.url())
    assert path == download.cache_path(site.url())
    assert path.read_bytes() == CONTENT
    assert leftovers() == {"", ".lock"}
    assert site.requests[0].headers["Accept-Encoding"] == "identity"
    beside(site, ".tar.lock").unlink()
    monkeypatch.setattr(fcntl, "flock", lambda *_: pytest.fail("the lock was taken"))
    assert download.fetch(site.url()) == path
    assert leftovers() == {""}
    assert len(site.requests) == 1


def test_file_appears_complete_and_synced(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under its name there is nothing until all bytes are on the disk."""
    path = download.cache_path(site.url())
    events: list[object] = []
    fsync, replace = os.fsync, os.replace

    def record_fsync(descriptor: int) -> None:
        fsync(descriptor)
        events.append(("fsync", os.fstat(descriptor).st_size, path.exists()))

    def record_replace(source: Path, target: Path) -> None:
        events.append(("replace", source.stat().st_size, target))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    download.fetch(site.url())
    assert events == [("fsync", len(CONTENT), False), ("replace", len(CONTENT), path)]


def test_two_processes_download_once(site: Site) -> None:
    """The second waits for the lock, and then finds what the first has brought."""
    site.script = [Reply(pause_at=0)] * 2
    code = "import sys; from mlcls.base import download; print('go', flush=True); print(download.fetch(sys.argv[1]))"
    command = [sys.executable, "-c", code, site.url()]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "go\n"
    time.sleep(0.2)
    site.gate.set()
    outputs = [process.communicate(timeout=20)[0] for process in processes]
    assert outputs == [f"{download.cache_path(site.url())}\n"] * 2
    assert download.cache_path(site.url()).read_bytes() == CONTENT
    assert len(site.requests) == 1
    assert leftovers() == {"", ".lock"}


# --- an interrupted download is resumed


def test_lost_connection_is_resumed_with_the_missing_bytes_only(site: Site) -> None:
    site.script = [CUT]
    assert download.fetch(site.url()).read_bytes() == CONTENT
    assert site.ranges() == [None, LEFT]
    assert site.requests[1].headers["If-Range"] == '"v1"'
    assert [request.sent_bytes for request in site.requests] == [CUT_BYTES, len(CONTENT) - CUT_BYTES]


def test_interrupted_run_is_resumed_from_its_own_bytes(interrupted: Site) -> None:
    beside(interrupted, ".tar.part").write_bytes(b"x" * CUT_BYTES)
    assert download.fetch(interrupted.url()).read_bytes() == b"x" * CUT_BYTES + CONTENT[CUT_BYTES:]
    assert interrupted.ranges() == [LEFT]
    assert interrupted.requests[0].sent_bytes == len(CONTENT) - CUT_BYTES
    assert leftovers() == {"", ".lock"}


def test_file_that_changed_on_the_server_starts_again(interrupted: Site) -> None:
    """If-Range makes the server send the whole new file."""
    interrupted.content, interrupted.headers["ETag"] = OTHER, '"v2"'
    interrupted.headers["Last-Modified"] = "Tue, 02 Jan 2024 00:00:00 GMT"
    assert download.fetch(interrupted.url()).read_bytes() == OTHER
    assert interrupted.ranges() == [LEFT]


@pytest.mark.parametrize("date", ["Mon, 01 Jan 2024 00:00:00 GMT", None])
def test_weak_etag_is_not_used_for_resuming(site: Site, date: str | None) -> None:
    """Last-Modified takes its place; without either, the download starts again."""
    site.headers = {"ETag": 'W/"v1"', **({"Last-Modified": date} if date else {})}
    site.script = [CUT]
    assert download.fetch(site.url()).read_bytes() == CONTENT
    assert site.ranges() == [None, LEFT if date else None]
    assert site.requests[1].headers["If-Range"] == date


@pytest.mark.parametrize(
    ("reply", "ranges"),
    [
        (partial(f"bytes {CUT_BYTES}-{LAST}/*"), [LEFT]),
        (Reply(200, CONTENT, {"Content-Range": None}), [LEFT]),  # a server that knows no Range
        (partial(f"bytes {CUT_BYTES - 10}-{LAST}/{len(CONTENT)}", CONTENT[CUT_BYTES - 10 :]), [LEFT, None]),
        (partial(f"bytes {CUT_BYTES}-{LAST}/{len(CONTENT) + 1}"), [LEFT, None]),
        (partial(None), [LEFT, None]),
        (Reply(416, b"no", {"Content-Range": f"bytes */{len(CONTENT)}"}), [LEFT, None]),
        (partial(REST, CONTENT[CUT_BYTES:-9]), [LEFT, f"bytes={len(CONTENT) - 9}-"]),
    ],
    ids=["no-total", "whole", "start", "total", "none", "416", "ends too early"],
)
def test_answer_to_a_range(interrupted: Site, reply: Reply, ranges: list[str | None]) -> None:
    """If it does not fit, what is here is forgotten, and the download starts again."""
    interrupted.script = [reply]
    assert download.fetch(interrupted.url()).read_bytes() == CONTENT
    assert interrupted.ranges() == ranges


def test_partial_answer_that_is_too_long(interrupted: Site) -> None:
    interrupted.script = [partial(REST, CONTENT)]
    assert f"more than {len(CONTENT)} bytes came" in failure(interrupted.url())
    assert leftovers() == {".lock"}


def test_complete_part_is_not_asked_for_again(interrupted: Site) -> None:
    beside(interrupted, ".tar.part").write_bytes(CONTENT)
    assert download.fetch(interrupted.url()).read_bytes() == CONTENT
    assert interrupted.requests == []


@pytest.mark.parametrize("sidecar", ["{", "{}", '{"total_bytes": "7", "validator": "x"}', None])
def test_sidecar_that_cannot_be_used(interrupted: Site, sidecar: str | None) -> None:
    path = beside(interrupted, ".tar.part.json")
    assert json.loads(path.read_text()) == {"total_bytes": len(CONTENT), "validator": '"v1"'}
    path.unlink()
    if sidecar is not None:
        path.write_text(sidecar)
    assert download.fetch(interrupted.url()).read_bytes() == CONTENT
    assert interrupted.ranges() == [None]


# --- sizes


@pytest.mark.parametrize(
    "reply",
    [
        chunked(CONTENT[:CUT_BYTES], ends=False),  # the cut is seen, and the download starts again
        chunked(CONTENT, ends=True),
        Reply(headers={"Content-Encoding": "gzip"}),  # some servers label a `.tar.gz` so; it is stored as it travels
    ],
)
def test_answer_that_is_a_file(site: Site, reply: Reply) -> None:
    site.script = [reply]
    assert download.fetch(site.url()).read_bytes() == CONTENT
    assert set(site.ranges()) == {None}


@pytest.mark.parametrize(
    ("replies", "words"),
    [
        ([Reply(headers={"Content-Length": None})], "the server reports no size, so a complete file cannot be told"),
        ([SHORT] * 4, "received 300000 bytes, expected 300001"),
        ([Reply(200, b"")], "the server offers 0 bytes, expected 1 to "),
        ([chunked(b"", ends=True)] * 4, "expected at least 1"),
        ([Reply(headers={"Content-Type": "text/html; charset=utf-8"})], "the server sent an HTML page"),
        ([partial(f"bytes 0-{LAST}/{len(CONTENT)}", CONTENT)], "HTTP 206 Partial Content"),
        ([Reply(401)], ": HTTP 401 "),
        ([Reply(404)], ": HTTP 404 "),
        ([Reply(302, headers={"Location": "file:///etc/passwd"})], "unsupported protocol 'file"),
        ([Reply(302, headers={"Location": "ftp://127.0.0.1/x"})], "unsupported protocol 'ftp"),
    ],
)
def test_answer_that_is_no_file(site: Site, replies: list[Reply], words: str) -> None:
    site.script = list(replies)
    assert words in failure(site.url())
    assert len(site.requests) == len(replies)


def test_file_that_is_too_large(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its head, or, if that does not tell, by its bytes."""
    monkeypatch.setattr(download, "MAX_BYTES", LAST)
    assert f": the server offers {len(CONTENT)} bytes, expected 1 to {LAST}. " in failure(site.url())
    site.script = [chunked(CONTENT, ends=True)]
    assert f": more than {LAST} bytes came. " in failure(site.url())
    assert leftovers() == {".lock"}
    monkeypatch.setattr(download, "MAX_BYTES", len(CONTENT))
    assert download.fetch(site.url()).read_bytes() == CONTENT


# --- trouble


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_trouble_of_the_server_passes(site: Site, status: int) -> None:
    """Another attempt is made, and what is here is kept."""
    site.script = [CUT, Reply(status)]
    assert download.fetch(site.url()).read_bytes() == CONTENT
    assert site.ranges() == [None, LEFT, LEFT]


def test_trouble_of_the_server_stays(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attempts are limited and wait ever longer."""
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    monkeypatch.setattr(download, "FIRST_BACKOFF_S", 0.5)
    site.script = [Reply(503)] * 10
    assert ": 4 attempts failed, the last with: HTTP 503 Service Unavailable. " in failure(site.url())
    assert len(site.requests) == 4
    assert waits == [0.5, 1.0, 2.0]
    site.server_close()
    assert ": 4 attempts failed, the last with: [Errno 111] Connection refused. " in failure(site.url())


def test_server_that_falls_silent(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The read timeout ends the attempt, and the next one resumes."""

    monkeypatch.setattr(download, "READ_TIMEOUT_S", 0.3)
    site.script = [Reply(pause_at=CUT_BYTES)]
    assert download.fetch(site.url()).read_bytes() == CONTENT
    assert site.ranges() == [None, LEFT]
    site.script = [Reply(pause_at=0)] * 4
    assert "the last with: timed out" in failure(site.url(f"/silent/{NAME}"))


def test_connection_that_hangs_is_not_tried_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A firewall that swallows packets would cost the timeout each time."""
    calls: list[httpx.Request] = []

    def hang(_: object, request: httpx.Request) -> httpx.Response:
        calls.append(request)
        raise httpx.ConnectTimeout("", request=request)

    monkeypatch.setattr(httpx.HTTPTransport, "handle_request", hang)
    assert ": ConnectTimeout. " in failure(site.url())
    assert len(calls) == 1
    assert calls[0].extensions["timeout"] == {"connect": 10.0, "read": 30.0, "write": 30.0, "pool": 30.0}


def test_redirect_is_followed(site: Site) -> None:
    """The cache knows the file by the URL that was asked for; ranges travel along."""
    elsewhere = Reply(302, headers={"Location": site.url("/elsewhere")})
    site.script = [elsewhere, CUT, elsewhere]
    assert download.fetch(site.url()) == download.cache_path(site.url())
    assert [request.path for request in site.requests] == [f"/models/{NAME}", "/elsewhere"] * 2
    assert site.ranges() == [None, None, LEFT, LEFT]


def test_redirects_without_end(site: Site) -> None:
    site.script = [Reply(302, headers={"Location": site.url()})] * 20
    assert ": it redirects more than 5 times. " in failure(site.url())
    assert len(site.requests) == 6


def test_body_of_a_redirect_is_not_read(site: Site) -> None:
    """It has no limit of size."""

    site.script = [Reply(302, b"", {"Location": site.url("/end"), "Content-Length": None}, pause_at=0)]
    start_s = time.monotonic()
    assert download.fetch(site.url()).read_bytes() == CONTENT
    assert time.monotonic() - start_s < 5


def test_proxy_of_the_environment(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"http://models.invalid/{NAME}"
    monkeypatch.setenv("HTTP_PROXY", "gopher://127.0.0.1:70")
    assert ": the environment's proxy or certificate settings cannot be used (" in failure(url)
    monkeypatch.setenv("HTTP_PROXY", site.url(""))
    assert download.fetch(url).read_bytes() == CONTENT
    assert [request.path for request in site.requests] == [url]


def test_places_that_cannot_be_used(site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert "cannot be used ([Errno 28] No space left on device)" in failure(site.url())
    assert len(site.requests) == 1
    (tmp_path / "file").touch()
    monkeypatch.setenv("MLCLS_CACHE_DIR", str(tmp_path / "file" / "cache"))
    message = failure(site.url())
    assert f": the cache folder {tmp_path}/file/cache cannot be used ([Errno 20] Not a directory" in message
    assert "MLCLS_CACHE_DIR can name another" in message


@pytest.mark.parametrize("url", ["", "model.tar", "file:///etc/passwd", "http:///x", "http://a b/", "http://h/\n"])
def test_not_a_url(site: Site, url: str) -> None:
    with pytest.raises(DownloadError) as caught:
        download.fetch(url)
    assert str(caught.value) == f"Expected an http:// or https:// URL, got {url!r}; a local file is given by its path."


@pytest.mark.parametrize("host", ["h:x", "n" * 70 + ".invalid", "xn--"])
def test_host_that_cannot_be(site: Site, host: str) -> None:
    failure(f"http://{host}/{NAME}")


def test_password_is_used_but_not_shown(site: Site) -> None:
    """Neither in the message nor on the disk."""
    url = site.url().replace("http://", "http://user:s3cret@")
    site.script = [CUT] + [Reply(503)] * 3
    with pytest.raises(DownloadError) as caught:
        download.fetch(url)
    assert site.requests[0].headers["Authorization"] == "Basic dXNlcjpzM2NyZXQ="
    assert "s3cret" not in str(caught.value)
    assert site.url() in str(caught.value)
    for path in download.cache_dir().iterdir():
        assert "s3cret" not in path.name
        assert b"s3cret" not in path.read_bytes()


def test_progress(site: Site, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """On stderr, in bytes, and only on a terminal; resuming starts where it stopped."""
    download.fetch(site.url("/1.tar"))
    assert capsys.readouterr() == ("", "")
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    site.script = [CUT]
    download.fetch(site.url("/2.tar"))
    assert "2.tar:  41%" in terminal.getvalue()
    assert "300k/300k" in terminal.getvalue()


# --- the cache's folder and names


@pytest.mark.parametrize(
    ("own", "xdg", "expected"),
    [
        ("~/mine", "/xdg", "/home/someone/mine"),
        ("", "/xdg", "/xdg/mlcls"),
        ("", "relative", "/home/someone/.cache/mlcls"),
        ("", "", "/home/someone/.cache/mlcls"),
    ],
)
def test_cache_dir(monkeypatch: pytest.MonkeyPatch, own: str, xdg: str, expected: str) -> None:
    for name, value in (("HOME", "/home/someone"), ("XDG_CACHE_HOME", xdg), ("MLCLS_CACHE_DIR", own)):
        monkeypatch.setenv(name, value)
    assert download.cache_dir() == Path(expected)


def test_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_CACHE_HOME", "MLCLS_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 9)
    with pytest.raises(DownloadError, match="Expected a home folder for the cache, got none; set MLCLS_CACHE_DIR"):
        download.cache_path("http://host/x")


@pytest.mark.parametrize(
    ("path", "start", "end"),
    [
        ("/a/ResNet50_ML_infer.tar", "ResNet50_ML_infer-", ".tar"),
        ("/a/m.tar.gz?sign=/x/y.zip#z", "m-", ".tar.gz"),
        ("/a/..", "download-", ""),
        ("/a/%2e%2e%2fpasswd", "_2e_2e_2fpasswd-", ""),
        ("/" + "n" * 300 + ".tar", "n" * 100 + "-", ".tar"),
    ],
)
def test_cache_path(path: str, start: str, end: str) -> None:
    """A readable name inside the cache folder, one per URL."""
    found = download.cache_path("http://host" + path)
    assert found.parent == download.cache_dir()
    assert found.name.startswith(start)
    assert found.name.endswith(end)
    assert len(found.name) == len(start) + 12 + len(end)
    assert found != download.cache_path("http://other" + path)
