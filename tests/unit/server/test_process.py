"""A server that was never started, its options, and the folder of backends that it is started with."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlcls.errors import ConfigError, ServerError
from mlcls.server.installation import BACKENDS, TritonInstallation, system_installation
from mlcls.server.options import ServerOptions, build_command
from mlcls.server.process import TritonServer


def test_a_server_that_was_not_started_has_nothing_to_end(tmp_path: Path) -> None:
    server = TritonServer(ServerOptions(tmp_path / "missing", ("animals",)))
    server.stop()
    server.abandon(1.0)
    server.kill()
    assert server.http_url == "127.0.0.1:8000"
    with pytest.raises(ServerError, match="Expected a running server, got one that was not started"):
        server.wait(0)


def test_a_start_that_fails_leaves_a_server_that_does_not_run(tmp_path: Path) -> None:
    server = TritonServer(ServerOptions.on_free_ports(tmp_path))
    with pytest.raises(ServerError, match="Expected at least one model to serve, got none"):
        server.start()
    with pytest.raises(ServerError, match="Expected a running server"):
        _ = server.pid


def test_the_backends_of_a_wheel_whose_bytecode_is_compiled(tmp_path: Path) -> None:
    """As pip does: `__pycache__` lies beside the files of the Python backend."""
    backends, stub = tmp_path / "backends", tmp_path / "triton_python_backend_stub"
    (backends / "python" / "__pycache__").mkdir(parents=True)
    (backends / "python" / "triton_python_backend_utils.py").write_text("utils")
    stub.write_text("stub")
    folder = tmp_path / "assembled"
    folder.mkdir()
    TritonInstallation(tmp_path / "tritonserver", backends, (), stub).assemble_backends(folder)
    assert {path.name for path in folder.iterdir()} == {"python", *BACKENDS}
    assert {path.name: path.read_text() for path in (folder / "python").iterdir()} == {
        "triton_python_backend_utils.py": "utils",
        stub.name: "stub",
    }


def test_a_tritonserver_at_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton finds no backend below a relative path."""
    (tmp_path / "triton" / "bin").mkdir(parents=True)
    (tmp_path / "triton" / "bin" / "tritonserver").touch()
    (tmp_path / "triton" / "backends").mkdir()
    monkeypatch.chdir(tmp_path)
    found = system_installation(Path("triton"))
    assert (found.executable, found.backends) == (tmp_path / "triton/bin/tritonserver", tmp_path / "triton/backends")
    assert found.library_folders == (tmp_path / "triton" / "lib",)


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:4318/v1/traces",
        "https://otel.example.com/v1/traces",
        "http://[::1]:4318/v1/traces",
        "http://a",
    ],
)
def test_addresses_of_traces(url: str) -> None:
    options = ServerOptions(Path(), ("animals",), trace_url=url, trace_rate=5)
    command = build_command(options, Path("tritonserver"), Path("backends"), "prefix", "key")
    assert [part.removeprefix("--trace-config=") for part in command if part.startswith("--trace-config")] == [
        "mode=opentelemetry",
        f"opentelemetry,url={url}",
        "opentelemetry,resource=service.name=mlcls",
        "rate=5",
        "level=TIMESTAMPS",
    ]


@pytest.mark.parametrize(
    "url", ["", "a:4318", "grpc://a:4317", "http://user:secret@a/v1", "http://a/b,rate=1", "http://a/\n", "http://a/ b"]
)
def test_wrong_addresses_of_traces(url: str) -> None:
    with pytest.raises(ConfigError, match="Expected --trace-url to be"):
        ServerOptions(Path(), ("animals",), trace_url=url)
