"""URLs are fetched by the client, within limits of size, time and redirects."""

import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from mlcls_client import FetchLimits, InputError, InvalidRequestError, create_model
from mlcls_client.inputs.fetch import fetch_url
from mlcls_client.inputs.sources import iterate_sources
from mlcls_client.testing import FakeServer
from support.client_images import GREEN, NAME, RED, decode, encode, encode_pages, unused_url
from support.quiet_http import QuietHandler, QuietHttpServer, running

RED_PNG = encode(RED)


class Handler(QuietHandler, BaseHTTPRequestHandler):
    """Serves some files, and misbehaves at other addresses."""

    protocol_version = "HTTP/1.0"

    def do_GET(self) -> None:
        self.server.paths.append(self.path)
        path, _, _ = self.path.partition("?")
        if path.startswith("/redirect/"):
            left = int(path.rpartition("/")[2])
            self.reply(302, headers={"Location": f"/redirect/{left - 1}" if left > 1 else "/red.png"})
        elif path == "/to-file":
            self.reply(302, headers={"Location": "file:///etc/hostname"})
        elif path == "/to-ftp":
            self.reply(302, headers={"Location": "ftp://127.0.0.1:9/a.png"})
        elif path.startswith("/slow"):
            if path == "/slow":
                self.reply(200, headers={"Content-Length": "100"})
            for _ in range(100):
                self.wfile.write(b"H")
                time.sleep(0.02)
        elif path == "/short":
            self.reply(200, b"only this", {"Content-Length": "100"})
        elif path == "/endless":
            self.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n" + b"x" * 1_000_000)
        elif path == "/no-http":
            self.wfile.write(b"this is not HTTP\r\n\r\n")
        elif path in self.server.files:
            self.reply(200, self.server.files[path])
        else:
            self.send_error(404)


@pytest.fixture
def web() -> Iterator[Any]:
    with running(QuietHttpServer(("127.0.0.1", 0), Handler)) as settings:
        settings.paths = []
        settings.files = {
            "/red.png": RED_PNG,
            "/two.tif": encode_pages("TIFF", RED, GREEN),
            "/a%20b/%C3%A4.png": RED_PNG,
            "/gray.ppm": encode(image_format="PPM"),
            "/empty": b"",
        }
        settings.url = f"http://127.0.0.1:{settings.server_port}"
        yield settings


def test_a_url_is_fetched_when_its_turn_comes(web: Any) -> None:
    url = f"{web.url}/red.png?size=2#top"
    (source,) = iterate_sources(url)
    assert web.paths == []
    assert (source.input_path, source.page_index, source.read()) == (url, None, RED_PNG)
    assert web.paths == ["/red.png?size=2"]


def test_a_url_of_pages(web: Any) -> None:
    url = f"{web.url}/two.tif"
    sources = list(iterate_sources([url]))
    assert [(source.input_path, source.page_index) for source in sources] == [(url, 0), (url, 1)]
    assert [decode(source.read()).getpixel((0, 0)) for source in sources] == [RED, GREEN]
    assert web.paths == ["/two.tif"], "fetched once"


def test_a_url_of_a_format_that_the_server_does_not_read(web: Any) -> None:
    (source,) = iterate_sources(f"{web.url}/gray.ppm")
    assert decode(source.read()).format == "PNG"


def test_an_address_may_have_spaces_and_other_letters(web: Any) -> None:
    assert fetch_url(f"{web.url}/a b/ä.png") == RED_PNG
    assert fetch_url(f"{web.url}/a%20b/%C3%A4.png") == RED_PNG


def test_results_and_saved_files_of_urls(web: Any, server: FakeServer, tmp_path: Path) -> None:
    urls = [f"{web.url}/red.png?size=2", f"{web.url}/two.tif", f"{web.url}/a%20b/%C3%A4.png"]
    urls += [f"{web.url}/gone.png", f"{web.url}/gone.tif"]
    with create_model(NAME, url=server.url) as model:
        results = list(model.predict(urls, on_error="yield"))
    assert [result.input_path for result in results] == [urls[0], urls[1], *urls[1:]]
    assert [result.label_names for result in results] == [["red"], ["red"], ["green"], ["red"], [], []]
    for result in results[:4]:
        result.save_all(tmp_path)
    saved = sorted(path.name for path in tmp_path.iterdir())
    assert saved[::2] == ["red_res.json", "two_0_res.json", "two_1_res.json", "ä_res.json"]
    assert saved[1::2] == ["red_res.png", "two_0_res.tif", "two_1_res.tif", "ä_res.png"]
    assert all("404 Not Found" in result["error"] for result in results[4:])


def test_redirects_are_followed_up_to_a_limit(web: Any) -> None:
    assert fetch_url(f"{web.url}/redirect/5") == RED_PNG
    with pytest.raises(InputError, match="too many redirects"):
        fetch_url(f"{web.url}/redirect/6")
    with pytest.raises(InputError, match="too many redirects"):
        fetch_url(f"{web.url}/redirect/1", FetchLimits(max_redirects=0))


@pytest.mark.parametrize(
    ("path", "limits", "message"),
    [
        ("/gone.png", FetchLimits(), "the server answered 404 Not Found"),
        ("/to-file", FetchLimits(), "Cannot fetch|answered 302"),
        ("/to-ftp", FetchLimits(), "redirected to an address that is not http or https"),
        ("/short", FetchLimits(), "Expected 100 bytes .* ended after 9"),
        ("/empty", FetchLimits(), "got an empty file"),
        ("/no-http", FetchLimits(), "not an answer of a web server"),
        ("/red.png", FetchLimits(max_bytes=20), r"at most 20 bytes .*, got \d+"),
        ("/endless", FetchLimits(max_bytes=5000), "at most 5000 bytes .*, got more"),
        ("/slow", FetchLimits(timeout_s=0.3), r"within 0\.3 s"),
        ("/slow-header", FetchLimits(timeout_s=0.3), r"within 0\.3 s"),
    ],
)
def test_what_cannot_be_fetched_is_an_error_that_says_what_came(
    web: Any, path: str, limits: FetchLimits, message: str
) -> None:
    begin = time.monotonic()
    with pytest.raises(InputError, match=message) as caught:
        fetch_url(web.url + path, limits)
    assert path in str(caught.value)
    assert time.monotonic() - begin < 1.5


def test_the_limits_of_predict_are_those_of_the_fetch(web: Any, server: FakeServer) -> None:
    with create_model(NAME, url=server.url) as model:
        for name in ("red.png", "two.tif"):
            with pytest.raises(InputError, match="at most 20 bytes"):
                list(model.predict([f"{web.url}/{name}"], fetch_limits=FetchLimits(max_bytes=20)))


def test_nobody_at_the_address() -> None:
    with pytest.raises(InputError, match=r"Cannot fetch .*refused"):
        fetch_url(f"http://{unused_url()}/a.png")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://host/a.png", "Expected a path, or an http or https address"),
        ("file:///a.png", "Expected a path, or an http or https address"),
        ("http:///a.png", "Expected a path, or an http or https address"),
        ("http://[::1/a.png", "malformed"),
        ("http://host:port/a.png", "malformed"),
        ("https://me:secret@host/a.png", "without user name and password"),
    ],
)
def test_another_address_is_an_error_that_tells_no_password(url: str, message: str) -> None:
    (source,) = iterate_sources(url)
    with pytest.raises(InputError, match=message) as caught:
        source.read()
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("options", [{"max_bytes": 0}, {"timeout_s": 0}, {"max_redirects": -1}])
def test_limits_that_let_nothing_through_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match="Expected max_bytes"):
        FetchLimits(**options)
