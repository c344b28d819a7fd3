"""`mlcls.base.download` against a real HTTP server on the loopback interface that misbehaves on demand."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from mlcls.base import download
from mlcls.errors import DownloadError

CONTENT = random.Random(0).randbytes(300_000)
OTHER = random.Random(1).randbytes(300_000)
CUT_BYTES = 123_457
SOURCE_FOLDER = Path(download.__file__).parents[2]


class Site(ThreadingHTTPServer):
    """Serves `content` at every path; `script` holds one behavior per coming request, then all goes well."""

    daemon_threads = True

    def __init__(self) -> None:
        """Bind a free port."""
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.headers: dict[str, str] = {"ETag": '"v1"', "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}
        self.script: list[Callable[[Handler], None]] = []
        self.requests: list[Handler] = []
        self.gate = threading.Event()

    def url(self, path: str = "/models/PP-LCNet_x1_0_ML_infer.tar") -> str:
        """The address of a path on this server."""
        return f"http://127.0.0.1:{self.server_address[1]}{path}"

    def ranges(self) -> list[str | None]:
        """The Range header of each request so far."""
        return [request.headers["Range"] for request in self.requests]


class Handler(BaseHTTPRequestHandler):
    """Answers one request per connection, and keeps count of the body's bytes."""

    server: Site
    sent_bytes = 0

    def do_GET(self) -> None:
        """Run the next behavior of the script."""
        self.server.requests.append(self)
        behavior = self.server.script.pop(0) if self.server.script else serve
        self.close_connection = True
        behavior(self)

    def head(self, status: int, **headers: object) -> None:
        """Send the status line and the headers, `_` in a name standing for `-`."""
        self.send_response(status)
        own = {name.replace("_", "-"): value for name, value in headers.items()}
        for name, value in {**self.server.headers, **own}.items():
            if value is not None:
                self.send_header(name, str(value))
        self.end_headers()

    def body(self, data: bytes) -> None:
        """Send bytes of the body."""
        self.wfile.write(data)
        self.wfile.flush()
        self.sent_bytes += len(data)

    def log_message(self, *_: Any) -> None:
        """Nothing: stderr is looked at by tests."""


def serve(handler: Handler, sent_bytes: int | None = None) -> None:
    """What a good server does with Range and If-Range; `sent_bytes`: the connection is cut after so many."""
    content, headers = handler.server.content, handler.server.headers
    asked = handler.headers["Range"]
    fresh = handler.headers["If-Range"] in (None, headers.get("ETag"), headers.get("Last-Modified"))
    if not asked or not fresh:
        handler.head(200, Content_Length=len(content))
        handler.body(content[:sent_bytes])
        return
    start = int(asked.removeprefix("bytes=").removesuffix("-"))
    if start >= len(content):
        handler.head(416, Content_Range=f"bytes */{len(content)}", Content_Length=3)
        handler.body(b"no\n")
        return
    span = f"bytes {start}-{len(content) - 1}/{len(content)}"
    handler.head(206, Content_Range=span, Content_Length=len(content) - start)
    handler.body(content[start:][:sent_bytes])


def cut(handler: Handler) -> None:
    """Loses the connection in the middle of the body."""
    serve(handler, sent_bytes=CUT_BYTES)


def ignore_range(handler: Handler) -> None:
    """Knows no Range."""
    handler.head(200, Content_Length=len(handler.server.content))
    handler.body(handler.server.content)


def answer(status: int, body: bytes = b"no", **headers: object) -> Callable[[Handler], None]:
    """A fixed answer."""

    def behave(handler: Handler) -> None:
        handler.head(status, **{"Content_Length": len(body), **headers})
        handler.body(body)

    return behave


def partial(content_range: str | None, *, start: int = CUT_BYTES, **headers: object) -> Callable[[Handler], None]:
    """A 206 with the bytes from `start` on, whatever was asked for, labeled with `content_range`."""
    return answer(206, CONTENT[start:], Content_Range=content_range, **headers)


def chunked(body: bytes, *, ends: bool) -> Callable[[Handler], None]:
    """An answer that reports no size, with the end mark or, truncated, without it."""

    def behave(handler: Handler) -> None:
        handler.protocol_version = "HTTP/1.1"
        handler.head(200, Transfer_Encoding="chunked", Connection="close")
        handler.body(f"{len(body):x}\r\n".encode() + body + b"\r\n" + (b"0\r\n\r\n" if ends else b""))

    return behave


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Site]:
    """The server, an empty cache, no waiting between attempts and no proxy."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("MLCLS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "FIRST_BACKOFF_S", 0.0)
    with Site() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.gate.set()
        server.shutdown()
        thread.join()


def failure(url: str, **options: Any) -> str:
    """The message of a failing download, after the checks that hold for all of them."""
    with pytest.raises(DownloadError) as caught:
        download.fetch(url, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"Could not download {url}: ")
    name = download.cache_path(url).name
    assert message.endswith(
        "Without network access, download this URL on another machine and pass the file or its folder "
        f"(mlcls import /path/to/PP-LCNet_x1_0_ML_infer.tar), or set MLCLS_CACHE_DIR to a cache that holds {name}."
    )
    assert not download.cache_path(url).exists()
    return message


def leftovers() -> set[str]:
    """Suffixes of what lies in the cache."""
    return {path.name.partition(".tar")[2] for path in download.cache_dir().iterdir()}


def interrupt(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the first CUT_BYTES of CONTENT in the cache, as an interrupted run does."""
    site.script = [cut]
    with monkeypatch.context() as patch:
        patch.setattr(download, "ATTEMPTS", 1)
        failure(site.url())
    site.requests.clear()
    assert download.cache_path(site.url()).with_suffix(".tar.part").read_bytes() == CONTENT[:CUT_BYTES]


def test_whole_file_is_fetched_once_and_then_reused(site: Site) -> None:
    """The file lands under its name, alone, and the second call uses no network."""
    path = download.fetch(site.url())
    assert path == download.cache_path(site.url())
    assert path.read_bytes() == CONTENT
    assert leftovers() == {"", ".lock"}
    assert site.requests[0].headers["Accept-Encoding"] == "identity"

    offline = httpx.MockTransport(lambda request: pytest.fail("the network was used"))
    assert download.fetch(site.url(), transport=offline) == path
    assert len(site.requests) == 1


def test_cached_file_in_a_folder_that_cannot_be_written(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shared cache needs neither the lock nor any other file to be created."""
    path = download.fetch(site.url())
    path.with_suffix(".tar.lock").unlink()
    path.parent.chmod(0o555)
    monkeypatch.setattr(fcntl, "flock", lambda *_: pytest.fail("the lock was taken"))
    assert download.fetch(site.url()) == path
    path.parent.chmod(0o755)
    assert leftovers() == {""}


def test_cached_file_that_is_not_the_expected_one_is_fetched_again(site: Site) -> None:
    """The hash and the size hold for what is in the cache too, and the old file stays until the new one is there."""
    path = download.cache_path(site.url())
    path.parent.mkdir()
    expectations: list[dict[str, Any]] = [
        {"expected_sha256": hashlib.sha256(CONTENT).hexdigest().upper()},
        {"expected_size": len(CONTENT)},
    ]
    for wanted in expectations:
        path.write_bytes(b"old")
        site.script = [answer(404)]
        with pytest.raises(DownloadError, match="404"):
            download.fetch(site.url(), **wanted)
        assert path.read_bytes() == b"old"
        assert download.fetch(site.url(), **wanted).read_bytes() == CONTENT


def test_lost_connection_is_resumed_with_the_missing_bytes_only(site: Site) -> None:
    """Within one call."""
    site.script = [cut]
    assert download.fetch(site.url()).read_bytes() == CONTENT
    assert site.ranges() == [None, f"bytes={CUT_BYTES}-"]
    assert site.requests[1].headers["If-Range"] == '"v1"'
    assert [request.sent_bytes for request in site.requests] == [CUT_BYTES, len(CONTENT) - CUT_BYTES]


def test_interrupted_run_is_resumed_with_the_missing_bytes_only(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a later call; the sidecar says what the bytes belong to."""
    site.script = [cut]
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    message = failure(site.url())
    assert "1 attempts failed, the last with: peer closed connection without sending complete message body" in message
    assert f"{CUT_BYTES} of {len(CONTENT)} bytes are kept and the next run resumes there" in message
    assert leftovers() == {".lock", ".part", ".part.json"}
    sidecar = download.cache_path(site.url()).with_suffix(".tar.part.json")
    assert json.loads(sidecar.read_text()) == {
        "url": site.url(),
        "etag": '"v1"',
        "last_modified": "Mon, 01 Jan 2024 00:00:00 GMT",
        "total_bytes": len(CONTENT),
    }
    assert download.fetch(site.url()).read_bytes() == CONTENT
    assert site.ranges() == [None, f"bytes={CUT_BYTES}-"]
    assert site.requests[1].sent_bytes == len(CONTENT) - CUT_BYTES
    assert leftovers() == {"", ".lock"}


def test_bytes_that_are_kept_are_not_read_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is resumed is really the `.part` file: a mark left in it comes out."""
    interrupt(site, monkeypatch)
    part = download.cache_path(site.url()).with_suffix(".tar.part")
    part.write_bytes(b"x" * CUT_BYTES)
    assert download.fetch(site.url()).read_bytes() == b"x" * CUT_BYTES + CONTENT[CUT_BYTES:]


def test_file_that_changed_on_the_server_starts_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """If-Range makes the server send the whole new file."""
    interrupt(site, monkeypatch)
    site.content, site.headers["ETag"] = OTHER, '"v2"'
    assert download.fetch(site.url()).read_bytes() == OTHER
    assert site.ranges() == [f"bytes={CUT_BYTES}-"]


def test_weak_etag_is_not_used_for_resuming(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Last-Modified takes its place; without either, the download starts again."""
    site.headers["ETag"] = 'W/"v1"'
    interrupt(site, monkeypatch)
    download.fetch(site.url())
    assert site.requests[0].headers["If-Range"] == "Mon, 01 Jan 2024 00:00:00 GMT"

    url = site.url("/other/PP-LCNet_x1_0_ML_infer.tar")
    del site.headers["Last-Modified"]
    site.requests.clear()
    site.script = [cut]
    assert download.fetch(url).read_bytes() == CONTENT
    assert site.ranges() == [None, None]


def test_server_that_ignores_range(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A 200 to a Range request is the whole file, not its end."""
    interrupt(site, monkeypatch)
    site.script = [ignore_range]
    assert download.fetch(site.url()).read_bytes() == CONTENT
    assert site.ranges() == [f"bytes={CUT_BYTES}-"]


LAST = len(CONTENT) - 1


@pytest.mark.parametrize(
    "wrong",
    [
        partial(f"bytes {CUT_BYTES - 10}-{LAST}/{len(CONTENT)}", start=CUT_BYTES - 10),
        partial(f"bytes {CUT_BYTES}-{LAST}/{len(CONTENT) + 1}"),
        partial("bytes"),
        partial(None),
        partial(f"bytes {CUT_BYTES}-{LAST}/{len(CONTENT)}", ETag='"v2"'),
        partial(f"bytes {CUT_BYTES}-{LAST}/*", Last_Modified="Tue, 02 Jan 2024 00:00:00 GMT"),
        answer(416, Content_Range="bytes */7"),
        answer(416),
    ],
    ids=["start", "total", "garbled", "none", "etag", "date", "416", "416-none"],
)
def test_partial_answer_that_does_not_fit(
    site: Site, monkeypatch: pytest.MonkeyPatch, wrong: Callable[[Handler], None]
) -> None:
    """What is here is forgotten, and the download starts again."""
    interrupt(site, monkeypatch)
    site.script = [wrong]
    assert download.fetch(site.url()).read_bytes() == CONTENT
    assert site.ranges() == [f"bytes={CUT_BYTES}-", None]


def test_partial_answer_that_fits_without_a_total(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """`*` as total contradicts nothing."""
    interrupt(site, monkeypatch)
    site.script = [partial(f"bytes {CUT_BYTES}-{LAST}/*")]
    assert download.fetch(site.url()).read_bytes() == CONTENT
    assert site.ranges() == [f"bytes={CUT_BYTES}-"]


def test_partial_answer_that_was_not_asked_for(site: Site) -> None:
    """A 206 to a plain GET is never the file."""
    site.script = [partial(f"bytes 0-{LAST}/{len(CONTENT)}", start=0)] * download.ATTEMPTS
    assert "HTTP 206 with Content-Range 'bytes 0-299999/300000'" in failure(site.url())


def test_partial_answer_that_is_too_long(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """More bytes than the file has are an error at once."""
    interrupt(site, monkeypatch)
    site.script = [partial(f"bytes {CUT_BYTES}-{LAST}/{len(CONTENT)}", start=0)]
    assert f"more than {len(CONTENT)} bytes came" in failure(site.url())
    assert leftovers() == {".lock"}


def test_complete_part_is_not_asked_for_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that ended between the last byte and the renaming."""
    interrupt(site, monkeypatch)
    download.cache_path(site.url()).with_suffix(".tar.part").write_bytes(CONTENT)
    assert download.fetch(site.url()).read_bytes() == CONTENT
    assert site.requests == []


def test_sidecar_that_cannot_be_used(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Damaged, of another URL, or missing: the download starts again."""
    interrupt(site, monkeypatch)
    path = download.cache_path(site.url())
    part, sidecar = path.with_suffix(".tar.part"), path.with_suffix(".tar.part.json")
    good = json.loads(sidecar.read_text())
    bad = ["{", "[]", "{}", json.dumps({**good, "url": "http://other"}), json.dumps({**good, "total_bytes": "7"}), None]
    for text in bad:
        path.unlink(missing_ok=True)
        site.requests.clear()
        part.write_bytes(CONTENT[:CUT_BYTES])
        sidecar.write_text(text or "")
        if text is None:
            sidecar.unlink()
        assert download.fetch(site.url()).read_bytes() == CONTENT
        assert site.ranges() == [None], text


def test_size_that_was_not_told(site: Site) -> None:
    """Chunked: a cut is seen and resumed, and the total comes with the 206."""
    site.script = [chunked(CONTENT[:CUT_BYTES], ends=False)]
    assert download.fetch(site.url()).read_bytes() == CONTENT
    assert site.ranges() == [None, f"bytes={CUT_BYTES}-"]


def test_size_that_is_told_by_a_partial_answer(site: Site) -> None:
    """It counts: an answer that ends well but too early does not make the file complete."""
    early = answer(206, CONTENT[CUT_BYTES:-9], Content_Range=f"bytes {CUT_BYTES}-{LAST}/{len(CONTENT)}")
    site.script = [chunked(CONTENT[:CUT_BYTES], ends=False), early]
    assert download.fetch(site.url()).read_bytes() == CONTENT
    assert site.ranges() == [None, f"bytes={CUT_BYTES}-", f"bytes={len(CONTENT) - 9}-"]


def test_size_that_was_not_told_and_nothing_is_missing(site: Site) -> None:
    """The connection ends after the last byte but before the end mark: the 416 tells that all is here."""
    site.script = [chunked(CONTENT, ends=False)]
    assert download.fetch(site.url()).read_bytes() == CONTENT
    assert site.ranges() == [None, f"bytes={len(CONTENT)}-"]


def test_answer_without_any_size(site: Site) -> None:
    """The end of the connection says nothing, unless the caller knows what must come."""
    site.script = [answer(200, CONTENT, Content_Length=None)] * 2
    assert "the server reports no size, so a complete file cannot be told from a truncated one" in failure(site.url())
    assert download.fetch(site.url(), expected_size=len(CONTENT)).read_bytes() == CONTENT


def test_size_that_is_not_the_expected_one(site: Site) -> None:
    """Seen in the head, before the body travels; seen at the end if the head does not tell."""
    wanted = len(CONTENT) + 1
    text = f"{len(CONTENT)} bytes, expected {wanted} and at most {download.MAX_BYTES}"
    assert f": the server offers {text}. " in failure(site.url(), expected_size=wanted)
    site.script = [chunked(CONTENT, ends=True)]
    assert f": the file has {text}. " in failure(site.url(), expected_size=wanted)
    assert len(site.requests) == 2
    assert leftovers() == {".lock"}


def test_content_length_that_is_too_small(site: Site) -> None:
    """A server whose length is wrong gives a cut file, which the hash shows."""
    site.script = [answer(200, CONTENT, Content_Length=len(CONTENT) - 1)]
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    cut_sha256 = hashlib.sha256(CONTENT[:-1]).hexdigest()
    message = failure(site.url(), expected_sha256=sha256)
    assert f": the file has SHA-256 {cut_sha256}, expected {sha256}. " in message
    assert leftovers() == {".lock"}
    assert len(site.requests) == 1


def test_content_length_that_is_too_large(site: Site) -> None:
    """The end never comes."""
    site.script = [answer(200, CONTENT, Content_Length=len(CONTENT) + 1)] * 4
    site.headers.clear()
    message = failure(site.url())
    assert f"received {len(CONTENT)} bytes, expected {len(CONTENT) + 1}" in message
    assert "kept" not in message


def test_transport_that_does_not_notice_a_short_body(site: Site) -> None:
    """The count is this module's own, too."""

    class Short(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            yield b"12345"

    transport = httpx.MockTransport(lambda _: httpx.Response(200, headers={"Content-Length": "9"}, stream=Short()))
    assert "the connection ended at byte 5 of 9" in failure(site.url(), transport=transport)


def test_empty_file(site: Site) -> None:
    """No model is empty; in the cache it would be in the way."""
    site.content = b""
    assert "the server offers 0 bytes, expected at least 1" in failure(site.url())


def test_sha256_of_a_resumed_file_is_mended_by_a_whole_download(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two contents under one ETag."""
    interrupt(site, monkeypatch)
    site.content = OTHER
    path = download.fetch(site.url(), expected_sha256=hashlib.sha256(OTHER).hexdigest())
    assert path.read_bytes() == OTHER
    assert site.ranges() == [f"bytes={CUT_BYTES}-", None]


def test_sha256_that_is_none(site: Site) -> None:
    """Refused before anything is downloaded."""
    assert "must be 64 hexadecimal digits, got 'abc'" in failure(site.url(), expected_sha256="abc")
    assert site.requests == []


def test_file_that_is_too_large(site: Site) -> None:
    """By its head, or, if that does not tell, by its bytes."""
    limit = len(CONTENT) - 1
    message = failure(site.url(), max_bytes=limit)
    assert f": the server offers {len(CONTENT)} bytes, expected at least 1 and at most {limit}. " in message
    site.script = [chunked(CONTENT, ends=True)]
    assert f": more than {limit} bytes came. " in failure(site.url(), max_bytes=limit)
    assert leftovers() == {".lock"}
    assert download.fetch(site.url(), max_bytes=len(CONTENT)).read_bytes() == CONTENT


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_refusal_is_final(site: Site, status: int) -> None:
    """No other attempt is made."""
    site.script = [answer(status)]
    assert f": HTTP {status} " in failure(site.url())
    assert len(site.requests) == 1


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_trouble_of_the_server_passes(site: Site, status: int) -> None:
    """Another attempt is made, and what is here is kept."""
    site.script = [cut, answer(status)]
    assert download.fetch(site.url()).read_bytes() == CONTENT
    assert site.ranges() == [None, f"bytes={CUT_BYTES}-", f"bytes={CUT_BYTES}-"]


def test_trouble_of_the_server_stays(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attempts are limited and wait ever longer."""
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    monkeypatch.setattr(download, "FIRST_BACKOFF_S", 0.5)
    site.script = [answer(503)] * 10
    assert ": 4 attempts failed, the last with: HTTP 503 Service Unavailable. " in failure(site.url())
    assert len(site.requests) == 4
    assert waits == [0.5, 1.0, 2.0]


def test_server_that_falls_silent(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The read timeout ends the attempt, and the next one resumes."""

    def fall_silent(handler: Handler) -> None:
        handler.head(200, Content_Length=len(CONTENT))
        handler.body(CONTENT[:CUT_BYTES])
        site.gate.wait(5)

    def stay_silent(handler: Handler) -> None:
        site.gate.wait(5)

    monkeypatch.setattr(download, "READ_TIMEOUT_S", 0.1)
    site.script = [fall_silent]
    assert download.fetch(site.url()).read_bytes() == CONTENT
    assert site.ranges() == [None, f"bytes={CUT_BYTES}-"]
    site.script = [stay_silent] * 4
    assert "the last with: timed out" in failure(site.url("/silent/PP-LCNet_x1_0_ML_infer.tar"))


def test_no_network(site: Site) -> None:
    """A refused connection, and a name that is not known."""
    port = site.server_address[1]
    site.server_close()
    message = failure(f"http://127.0.0.1:{port}/PP-LCNet_x1_0_ML_infer.tar")
    assert ": 4 attempts failed, the last with: [Errno 111] Connection refused. " in message

    def resolve(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("[Errno -2] Name or service\nnot known", request=request)

    url = "https://models.example/PP-LCNet_x1_0_ML_infer.tar"
    assert "Name or service not known" in failure(url, transport=httpx.MockTransport(resolve))


def test_connection_that_hangs_is_not_tried_again(site: Site) -> None:
    """A firewall that swallows packets would cost the timeout each time."""
    calls: list[httpx.Request] = []

    def hang(request: httpx.Request) -> httpx.Response:
        calls.append(request)
        raise httpx.ConnectTimeout("", request=request)

    message = failure(site.url(), transport=httpx.MockTransport(hang))
    assert ": ConnectTimeout. " in message
    assert len(calls) == 1
    assert calls[0].extensions["timeout"] == {"connect": 10.0, "read": 30.0, "write": 30.0, "pool": 30.0}


def test_redirect_is_followed(site: Site) -> None:
    """The cache knows the file by the URL that was asked for; ranges travel along."""
    elsewhere = answer(302, Location=site.url("/elsewhere"))
    site.script = [elsewhere, cut, elsewhere]
    assert download.fetch(site.url()) == download.cache_path(site.url())
    assert [request.path for request in site.requests] == ["/models/PP-LCNet_x1_0_ML_infer.tar", "/elsewhere"] * 2
    assert site.ranges() == [None, None, f"bytes={CUT_BYTES}-", f"bytes={CUT_BYTES}-"]


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/x"])
def test_redirect_to_another_scheme(site: Site, location: str) -> None:
    """Refused, with any transport."""
    site.script = [answer(302, Location=location)]
    assert f": it redirects to '{location[:6]}" in failure(site.url())

    def redirect(request: httpx.Request) -> httpx.Response:
        assert request.url.scheme == "http"
        return httpx.Response(302, headers={"Location": location})

    assert ", expected http or https. " in failure(site.url(), transport=httpx.MockTransport(redirect))


def test_redirects_without_end(site: Site) -> None:
    """Five are followed."""
    site.script = [answer(302, Location=site.url())] * 20
    assert ": it redirects more than 5 times. " in failure(site.url())
    assert len(site.requests) == 6


def test_body_of_a_redirect_is_not_read(site: Site) -> None:
    """It has no limit of size."""

    class Endless(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            pytest.fail("the body of the redirect was read")

    def respond(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/end":
            return httpx.Response(200, headers={"Content-Length": "5"}, stream=httpx.ByteStream(b"model"))
        return httpx.Response(302, headers={"Location": "/end"}, stream=Endless())

    assert download.fetch(site.url(), transport=httpx.MockTransport(respond)).read_bytes() == b"model"


def test_html_instead_of_a_file(site: Site) -> None:
    """The login page of a network must not get into the cache."""
    site.script = [answer(200, b"<html>log in</html>", Content_Type="text/html; charset=utf-8")]
    assert "the server sent an HTML page instead of a file" in failure(site.url())


def test_encoded_body_is_stored_as_it_travels(site: Site) -> None:
    """Some servers label a `.tar.gz` so; decoded it would not have its size or hash."""
    site.script = [answer(200, CONTENT, Content_Encoding="gzip")]
    assert download.fetch(site.url()).read_bytes() == CONTENT


def test_file_appears_complete_and_synced(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under its name there is nothing until all bytes are on the disk."""
    path = download.cache_path(site.url())
    events: list[object] = []

    def watch(handler: Handler) -> None:
        handler.head(200, Content_Length=len(CONTENT))
        handler.body(CONTENT[:CUT_BYTES])
        events.append(path.exists())
        handler.body(CONTENT[CUT_BYTES:])

    fsync, replace = os.fsync, os.replace

    def record_fsync(descriptor: int) -> None:
        fsync(descriptor)
        events.append(("fsync", os.fstat(descriptor).st_size, os.fstat(descriptor).st_ino))

    def record_replace(source: Path, target: Path) -> None:
        events.append(("replace", source.stat().st_ino, target))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    site.script = [watch]
    inode = download.fetch(site.url()).stat().st_ino
    assert events == [False, ("fsync", len(CONTENT), inode), ("replace", inode, path)]


def test_download_waits_for_the_lock(site: Site) -> None:
    """And then finds what the holder of the lock has brought."""
    path = download.cache_path(site.url())
    path.parent.mkdir()
    done = threading.Event()

    def fetch() -> None:
        download.fetch(site.url())
        done.set()

    thread = threading.Thread(target=fetch)
    with path.with_suffix(".tar.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread.start()
        assert not done.wait(0.15)
        path.write_bytes(b"brought by the other")
    assert done.wait(5)
    thread.join()
    assert site.requests == []
    assert path.read_bytes() == b"brought by the other"


def test_two_processes_download_once(site: Site) -> None:
    """Both get the file, and the server is asked one time."""

    def hold(handler: Handler) -> None:
        site.gate.wait(5)
        serve(handler)

    site.script = [hold, hold]
    code = "import sys; from mlcls.base import download; print('go', flush=True); print(download.fetch(sys.argv[1]))"
    environment = {**os.environ, "PYTHONPATH": str(SOURCE_FOLDER)}
    command = [sys.executable, "-c", code, site.url()]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "go\n"
    threading.Event().wait(0.2)
    site.gate.set()
    outputs = [process.communicate(timeout=20)[0] for process in processes]
    assert outputs == [f"{download.cache_path(site.url())}\n"] * 2
    assert download.cache_path(site.url()).read_bytes() == CONTENT
    assert len(site.requests) == 1
    assert leftovers() == {"", ".lock"}


def test_proxy_of_the_environment_is_used(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy gets the whole URL."""
    monkeypatch.setenv("HTTP_PROXY", site.url(""))
    url = "http://models.invalid/PP-LCNet_x1_0_ML_infer.tar"
    assert download.fetch(url).read_bytes() == CONTENT
    assert [request.path for request in site.requests] == [url]


def test_proxy_that_cannot_be_used(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in one line."""
    monkeypatch.setenv("HTTP_PROXY", "gopher://127.0.0.1:70")
    assert ": the environment's proxy or certificate settings cannot be used (" in failure(site.url())


def test_cache_folder_that_cannot_be_used(site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file is in its place."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("MLCLS_CACHE_DIR", str(tmp_path / "file" / "cache"))
    message = failure(site.url())
    assert f": the cache folder {tmp_path}/file/cache cannot be used ([Errno 20] Not a directory" in message
    assert "MLCLS_CACHE_DIR can name another" in message


def test_disk_that_is_full(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """No other attempt is made."""

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert "cannot be used ([Errno 28] No space left on device)" in failure(site.url())
    assert len(site.requests) == 1


@pytest.mark.parametrize(
    "url",
    [
        "",
        "model.tar",
        "file:///etc/passwd",
        "ftp://host/x",
        "http:///x",
        "https://",
        "http://a b/",
        "http://h/\n",
        "http://h/\x1b",
    ],
)
def test_not_a_url(site: Site, url: str) -> None:
    """Paths are for the caller to tell apart."""
    with pytest.raises(DownloadError) as caught:
        download.fetch(url)
    assert str(caught.value) == f"Expected an http:// or https:// URL, got {url!r}; a local file is given by its path."


@pytest.mark.parametrize("host", ["h:x", "n" * 70 + ".invalid", "xn--"])
def test_host_that_cannot_be(site: Site, host: str) -> None:
    """What is raised deep down does not get out."""
    failure(f"http://{host}/PP-LCNet_x1_0_ML_infer.tar")


def test_password_is_used_but_not_shown(site: Site) -> None:
    """Neither in the message nor on the disk."""
    url = site.url().replace("http://", "http://user:s3cret@")
    site.script = [cut] + [answer(503)] * 3
    with pytest.raises(DownloadError) as caught:
        download.fetch(url)
    assert site.requests[0].headers["Authorization"] == "Basic dXNlcjpzM2NyZXQ="
    assert "s3cret" not in str(caught.value)
    assert site.url() in str(caught.value)
    for path in download.cache_dir().iterdir():
        assert "s3cret" not in path.name
        assert b"s3cret" not in path.read_bytes()
    site.requests.clear()
    assert download.fetch(url).read_bytes() == CONTENT
    assert site.ranges() == [f"bytes={CUT_BYTES}-"]


def test_progress(site: Site, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """On stderr, in bytes, and by itself only on a terminal; resuming starts where it stopped."""
    download.fetch(site.url("/1.tar"))
    download.fetch(site.url("/2.tar"), progress=False)
    assert capsys.readouterr() == ("", "")
    download.fetch(site.url("/3.tar"), progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "3.tar: 100%" in shown.err
    assert "300k/300k" in shown.err

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    site.script = [cut]
    first, second = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stderr", first)
    download.fetch(site.url("/4.tar"))
    assert "4.tar:  41%" in first.getvalue()
    assert "300k/300k" in first.getvalue()
    monkeypatch.setattr(sys, "stderr", second)
    download.fetch(site.url("/5.tar"), progress=False)
    assert second.getvalue() == ""


def test_cache_dir(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of three that is set."""
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv("MLCLS_CACHE_DIR", "~/mine")
    assert download.cache_dir() == Path("/home/someone/mine")
    monkeypatch.setenv("MLCLS_CACHE_DIR", "")
    assert download.cache_dir() == Path("/xdg/mlcls")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert download.cache_dir() == Path("/home/someone/.cache/mlcls")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("MLCLS_CACHE_DIR")
    assert download.cache_dir() == Path("/home/someone/.cache/mlcls")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 9)
    with pytest.raises(DownloadError, match="Expected a home folder for the cache, got none; set MLCLS_CACHE_DIR"):
        download.cache_path("http://host/x")


@pytest.mark.parametrize(
    ("path", "start", "end"),
    [
        ("/a/ResNet50_ML_infer.tar", "ResNet50_ML_infer-", ".tar"),
        ("/a/m.tar.gz?sign=/x/y.zip#z", "m-", ".tar.gz"),
        ("/a/..", "download-", ""),
        ("/", "download-", ""),
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


def test_import_is_light() -> None:
    """Neither httpx nor tqdm is imported before a download."""
    code = "import sys, mlcls.base.download; sys.exit(bool({'httpx', 'tqdm'} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(SOURCE_FOLDER)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
