"""What a server is started with, whoever starts it: closed APIs, loopback, no cache, nothing that follows a request."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb2

from mlcls.errors import ServerError
from mlcls.server.options import (
    ADMIN_KEY_VARIABLE,
    CLOSED_APIS,
    CLOSED_APIS_IN_PRODUCTION,
    ServerOptions,
    build_command,
    read_admin_key,
)
from support.processes import ROOT


def command_of(options: ServerOptions) -> list[str]:
    return build_command(options, Path("/bin/tritonserver"), Path("/backends"), "prefix", "the-key")


@pytest.mark.parametrize("closed", [CLOSED_APIS, CLOSED_APIS_IN_PRODUCTION])
def test_closed_over_both_protocols(closed: tuple[str, ...]) -> None:
    command = command_of(ServerOptions(Path(), ("animals",), closed_apis=closed))
    apis = ",".join(closed)
    assert f"--http-restricted-api={apis}:mlcls-admin-key=the-key" in command
    assert f"--grpc-restricted-protocol={apis}:mlcls-admin-key=the-key" in command
    assert {"model-repository", "shared-memory", "logging", "trace"} <= set(closed)


def test_default_is_closed_and_on_loopback() -> None:
    options = ServerOptions(Path(), ("animals",))
    assert options.closed_apis == CLOSED_APIS
    command = command_of(options)
    for api in ("http", "grpc", "metrics"):
        assert f"--{api}-address=127.0.0.1" in command
    assert "--disable-auto-complete-config" in command


def test_no_response_cache_and_no_header_becomes_a_parameter() -> None:
    """A cached answer could be that of a request with another threshold."""
    names = {option.partition("=")[0] for option in command_of(ServerOptions(Path(), ("animals",)))}
    assert not names & {"--cache-config", "--response-cache-byte-size", "--cache-directory"}
    assert not names & {"--http-header-forward-pattern", "--grpc-header-forward-pattern", "--trace-config"}
    paths = sorted((ROOT / "model_repository").rglob("*.pbtxt"))
    assert len(paths) >= 24
    for path in paths:
        config = text_format.Parse(path.read_text(encoding="utf-8"), pb2.ModelConfig())
        assert not config.HasField("response_cache"), path


def test_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ADMIN_KEY_VARIABLE, raising=False)
    first, second = read_admin_key(), read_admin_key()
    assert first != second and min(len(first), len(second)) >= 32
    monkeypatch.setenv(ADMIN_KEY_VARIABLE, "")
    assert len(read_admin_key()) >= 32, "an empty key would be no key"
    for key in ("x", "open sesame", "a/b+c==", "a:b,c=d"):
        monkeypatch.setenv(ADMIN_KEY_VARIABLE, key)
        assert read_admin_key() == key
    for key in (" leading", "trailing ", "tab\tinside", "line\nbreak", "\x1b[31m", "snow☃", " "):
        monkeypatch.setenv(ADMIN_KEY_VARIABLE, key)
        with pytest.raises(ServerError, match=f"{ADMIN_KEY_VARIABLE}: expected printable") as caught:
            read_admin_key()
        assert key.strip() == "" or key not in str(caught.value)
