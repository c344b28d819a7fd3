"""Facts are read from the system, an installation and a server."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from mlcls.doctor.facts import EMBEDDED_VERSIONS
from mlcls.doctor.inspection import (
    inspect_machine,
    inspect_server,
    inspect_triton,
    parse_version,
    read_available_memory,
)
from mlcls.errors import ServerError
from mlcls.model.spec import ModelSpec
from mlcls.repository.configurations import write_configs
from mlcls.repository.models import Repository
from support.quiet_http import QuietHttpServer


@pytest.mark.parametrize(
    ("text", "version"),
    [("2.75.0\n", (2, 75, 0)), ("2.36", (2, 36)), ("v1.2-rc1", (1, 2)), ("", None), ("unknown", None)],
)
def test_parse_version(text: str, version: tuple[int, ...] | None) -> None:
    assert parse_version(text) == version


def write(system: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = system / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


MEMINFO = {"proc/meminfo": "MemTotal:       16000 kB\nMemAvailable:    8000 kB\n"}
CGROUP_2 = "sys/fs/cgroup/"
CGROUP_1 = "sys/fs/cgroup/memory/"


@pytest.mark.parametrize(
    ("files", "memory_bytes"),
    [
        ({}, 8000 * 1024),
        ({f"{CGROUP_2}memory.max": "max\n", f"{CGROUP_2}memory.current": "5\n"}, 8000 * 1024),
        ({f"{CGROUP_2}memory.max": "3000000\n", f"{CGROUP_2}memory.current": "1000000\n"}, 2_000_000),
        ({f"{CGROUP_2}memory.max": "1000\n", f"{CGROUP_2}memory.current": "2000\n"}, 0),
        (
            {f"{CGROUP_1}memory.limit_in_bytes": "4000000\n", f"{CGROUP_1}memory.usage_in_bytes": "1000000\n"},
            3_000_000,
        ),
        (
            {f"{CGROUP_1}memory.limit_in_bytes": f"{1 << 62}\n", f"{CGROUP_1}memory.usage_in_bytes": "1\n"},
            8000 * 1024,
        ),
    ],
    ids=["no limit", "cgroup 2 without", "cgroup 2", "cgroup 2 at its limit", "cgroup 1", "cgroup 1 without"],
)
def test_memory_that_a_container_leaves(tmp_path: Path, files: dict[str, str], memory_bytes: int) -> None:
    write(tmp_path, MEMINFO | files)
    assert read_available_memory(tmp_path) == memory_bytes


def test_triton_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_SERVER_VERSION", raising=False)
    write(tmp_path, {"bin/tritonserver": "", "backends/python/x": ""})
    assert inspect_triton(tmp_path).version is None
    monkeypatch.setenv("TRITON_SERVER_VERSION", "2.74.0")
    assert inspect_triton(tmp_path).version == (2, 74, 0)
    write(tmp_path, {"TRITON_VERSION": "2.75.0\n"})
    facts = inspect_triton(tmp_path)
    assert (facts.version, facts.is_embedded) == ((2, 75, 0), False)
    with pytest.raises(ServerError, match="Expected bin/tritonserver"):
        inspect_triton(tmp_path / "nowhere")


def test_the_embedded_triton_is_known() -> None:
    """The version of a newer wheel must be added by a person."""
    facts = inspect_triton(None)
    assert facts.is_embedded
    assert facts.version in EMBEDDED_VERSIONS.values()


def test_a_repository_with_an_incomplete_model(tmp_path: Path, custom_spec: ModelSpec) -> None:
    root = tmp_path / "models"
    write_configs(Repository(root), custom_spec)
    facts = inspect_machine(root)
    assert facts.repository is not None
    assert facts.repository.models == (), "it is not imported"
    (root / "animals-v2" / "1").mkdir()
    facts = inspect_machine(root)
    assert facts.repository is not None
    (model,) = facts.repository.models
    assert (model.name, len(model.faults)) == ("animals-v2", 1)
    assert inspect_machine(tmp_path / "nowhere").repository is None


class _Handler(BaseHTTPRequestHandler):
    answers: dict[str, tuple[int, bytes]]

    def do_GET(self) -> None:
        status, body = self.answers.get(self.path, (404, b""))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing on the screen."""


@pytest.fixture
def http_server() -> Iterator[tuple[str, dict[str, tuple[int, bytes]]]]:
    """Yield a server's address and its answers by path, which a test fills in."""
    answers: dict[str, tuple[int, bytes]] = {}
    handler = type("Handler", (_Handler,), {"answers": answers})
    with QuietHttpServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}", answers
        server.shutdown()
        thread.join()


def test_a_server_with_some_open_apis(http_server: tuple[str, dict[str, tuple[int, bytes]]]) -> None:
    url, answers = http_server
    answers["/v2"] = (200, json.dumps({"name": "triton", "version": "2.75.0"}).encode())
    answers["/v2/logging"] = (200, b"{}")
    answers["/v2/repository/index"] = (403, b"closed")
    facts = inspect_server(url)
    assert (facts.version, facts.is_local, facts.fault) == ((2, 75, 0), True, None)
    assert facts.open_apis == ("logging",)
    assert inspect_server(f"http://{url}/").url == f"http://{url}"


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"<html>", b'{"version": "?"}'])
def test_something_else_answers(http_server: tuple[str, dict[str, tuple[int, bytes]]], body: bytes) -> None:
    url, answers = http_server
    answers["/v2"] = (200, body)
    facts = inspect_server(url)
    assert (facts.version, facts.fault) == (None, None)


def test_nothing_answers() -> None:
    with QuietHttpServer(("127.0.0.1", 0), _Handler) as server:
        port = server.server_address[1]
    facts = inspect_server(f"127.0.0.1:{port}")
    assert facts.fault is not None
    assert facts.fault.startswith("no answer over HTTP (")


@pytest.mark.parametrize("url", ["", "http://", "ftp://host", "host:port", "127.0.0.1:99999"])
def test_no_address(url: str) -> None:
    with pytest.raises(ServerError, match="Expected the address of Triton's HTTP API like 127"):
        inspect_server(url)


@pytest.mark.parametrize(
    ("host", "is_local"), [("localhost", True), ("127.0.0.2", True), ("[::1]", True), ("0.0.0.0", False)]
)
def test_addresses_of_this_machine_only(host: str, is_local: bool) -> None:
    assert inspect_server(f"{host}:1").is_local == is_local
