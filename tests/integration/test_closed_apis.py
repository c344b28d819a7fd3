"""Every method of the closed APIs of the real server is refused without the admin key, over HTTP and gRPC."""

from __future__ import annotations

import dataclasses
import http.client
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
import tritonclient.grpc
from tritonclient.grpc import service_pb2

from benchmarks.endurance.identity_model import MODEL, make_image, make_repository
from mlcls.server.options import (
    ADMIN_KEY_HEADER,
    ADMIN_KEY_VARIABLE,
    CLOSED_APIS,
    CLOSED_APIS_IN_PRODUCTION,
    ServerOptions,
)
from mlcls.server.process import TritonServer
from mlcls_client import ServerError, create_model
from support.closed_calls import Headers, call_grpc, grpc_calls, http_calls

# As `openssl rand -base64` makes them, and with what Triton parses in the option around it.
KEY: Final = "a-key/for+tests:71c2,x=="
GRPC_HEADER: Final = f"triton-grpc-protocol-{ADMIN_KEY_HEADER}"

_MODEL_PATH: Final = f"/v2/models/{MODEL}"
HTTP_CALLS: Final = http_calls(MODEL)
GRPC_CALLS: Final = grpc_calls(MODEL)
# What stays open: asking for answers, and what clients and probes need to know.
OPEN_RPCS: Final = {
    "ServerLive",
    "ServerReady",
    "ModelReady",
    "ServerMetadata",
    "ModelMetadata",
    "ModelInfer",
    "ModelStreamInfer",
    "ModelConfig",
}
# Headers of somebody who does not know the key; repeated ones are lists.
GUESSES: Final[list[list[tuple[str, str]]]] = [
    [],
    [(ADMIN_KEY_HEADER, "")],
    [(ADMIN_KEY_HEADER, "wrong")],
    [(ADMIN_KEY_HEADER, KEY[:-1])],
    [(ADMIN_KEY_HEADER, KEY.upper())],
    [(ADMIN_KEY_HEADER, f"{KEY}x")],
    [(ADMIN_KEY_HEADER, "wrong"), (ADMIN_KEY_HEADER, "")],
    [(ADMIN_KEY_HEADER.upper(), "wrong"), (ADMIN_KEY_HEADER.title(), "*")],
    [(f"{ADMIN_KEY_HEADER}-x", KEY)],
    [("authorization", f"Bearer {KEY}")],
]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("log") / "tritonserver.log"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, log: Path) -> Iterator[TritonServer]:
    """A server of the identity model with all that production closes."""
    root = tmp_path_factory.mktemp("closed") / "model_repository"
    root.mkdir()
    make_repository(root)
    options = dataclasses.replace(
        ServerOptions.on_free_ports(root, MODEL), closed_apis=CLOSED_APIS_IN_PRODUCTION, log_path=log
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ADMIN_KEY_VARIABLE, KEY)
        running = TritonServer(options)
    with running:
        yield running


def call_http(
    server: TritonServer, method: str, path: str, body: bytes = b"", headers: Headers = ()
) -> tuple[int, str]:
    """Status and text; headers go out in order, repeated ones too, and the path as it is."""
    connection = http.client.HTTPConnection(server.http_url, timeout=20)
    try:
        connection.putrequest(method, path)
        for name, value in headers:
            connection.putheader(name, value)
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        response = connection.getresponse()
        return response.status, response.read().decode(errors="replace")
    finally:
        connection.close()


def still_answers(server: TritonServer) -> bool:
    with create_model(MODEL, url=server.grpc_url) as model:
        (result,) = model.predict(make_image(5, "PNG"), threshold=0)
    return len(result["class_ids"]) == 20


def test_every_rpc_is_either_listed_as_open_or_closed() -> None:
    """A newer tritonclient with a new method ends here, and somebody decides."""
    methods = {method.name for method in service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods}
    assert methods == OPEN_RPCS | {method for _, method, _ in GRPC_CALLS}
    assert {api for api, *_ in HTTP_CALLS} == {api for api, *_ in GRPC_CALLS} == set(CLOSED_APIS_IN_PRODUCTION)
    assert set(CLOSED_APIS) == set(CLOSED_APIS_IN_PRODUCTION) - {"statistics"}


@pytest.mark.parametrize(("api", "method", "path", "body"), HTTP_CALLS)
def test_http_is_closed(server: TritonServer, api: str, method: str, path: str, body: bytes) -> None:
    for headers in GUESSES:
        status, text = call_http(server, method, path, body, headers)
        assert (status, "restricted" in text) == (403, True), (headers, status, text)


@pytest.mark.parametrize(("api", "method", "fields"), GRPC_CALLS)
def test_grpc_is_closed(server: TritonServer, api: str, method: str, fields: Mapping[str, Any]) -> None:
    with grpc.insecure_channel(server.grpc_url) as channel:
        for guess in GUESSES:
            # gRPC's metadata is in lower case, and Triton wants a prefix before the key's name
            for prefix in ("", "triton-grpc-protocol-"):
                headers = [(prefix + name.lower(), value) for name, value in guess]
                answer = call_grpc(channel, method, fields, headers)
                assert answer.startswith("UNAVAILABLE: This protocol is restricted"), (headers, answer)


@pytest.mark.parametrize(
    "path",
    [
        "/v2/repository/index/",
        "//v2/repository/index",
        "/v2//repository/index",
        "/v2/./repository/index",
        "/v2/x/../repository/index",
        "/v2/models/../repository/index",
        "/V2/repository/index",
        "/v2/repository%2findex",
        "/v2/%72epository/index",
        "/v2/repository/index?x=1",
        "/v2/repository/index;x",
        "/v2/repository/index%00",
        f"/v2/models/{MODEL}/../../repository/models/{MODEL}/unload",
        f"/v2/repository/models/{MODEL}%2funload",
        f"/v2/repository/models/{MODEL}/versions/1/unload",
    ],
)
def test_no_way_round_the_path(server: TritonServer, path: str) -> None:
    for method in ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"):
        status, text = call_http(server, method, path, b"{}")
        assert status >= 400, (method, status, text)
        assert MODEL not in text.replace(path, ""), "no list of models"
    assert still_answers(server)


def test_nothing_was_done(server: TritonServer) -> None:
    """After all those calls the model is there, no file was opened, and no region is known."""
    assert still_answers(server)
    headers = {GRPC_HEADER: KEY}
    with tritonclient.grpc.InferenceServerClient(server.grpc_url) as client:
        assert not client.get_system_shared_memory_status(headers=headers).regions
        assert not client.get_cuda_shared_memory_status(headers=headers).regions
        assert client.get_log_settings(headers=headers).settings["log_file"].string_param == ""
        trace = client.get_trace_settings(headers=headers).settings
        assert list(trace["trace_level"].value) == ["OFF"]


@pytest.mark.parametrize("name", [ADMIN_KEY_HEADER, ADMIN_KEY_HEADER.upper(), ADMIN_KEY_HEADER.title()])
def test_http_with_the_key(server: TritonServer, name: str) -> None:
    headers = [(name, KEY)]
    for api, method, path, body in HTTP_CALLS:
        if method == "GET" and "region" not in path:
            assert call_http(server, method, path, body, headers)[0] == 200, (api, path)
    status, text = call_http(server, "POST", "/v2/repository/index", b"{}", headers)
    assert status == 200
    assert MODEL in {entry["name"] for entry in json.loads(text)}


def test_grpc_with_the_key(server: TritonServer) -> None:
    with grpc.insecure_channel(server.grpc_url) as channel:
        for api, method, fields in GRPC_CALLS:
            if "Register" not in method and method not in ("RepositoryModelLoad", "RepositoryModelUnload"):
                assert call_grpc(channel, method, fields, [(GRPC_HEADER, KEY)]) == "OK", (api, method)
        unload = call_grpc(channel, "RepositoryModelUnload", {}, [(GRPC_HEADER, KEY)])
    assert unload in ("OK", "NOT_FOUND: failed to unload '', unknown model")


def test_shared_memory_of_the_client_needs_the_key(server: TritonServer) -> None:
    image = make_image(9, "PNG")
    with create_model(MODEL, url=server.grpc_url, shared_memory=True, admin_key=KEY) as model:
        (result,) = model.predict(image, threshold=0)
    assert len(result["class_ids"]) == 20
    for key in (None, "wrong"):
        with (
            create_model(MODEL, url=server.grpc_url, shared_memory=True, admin_key=key, retries=0) as model,
            pytest.raises(ServerError, match="accepts no shared memory from this client"),
        ):
            next(model.predict(image))


def test_the_key_is_in_no_log_and_no_error(server: TritonServer, log: Path, capfd: pytest.CaptureFixture[str]) -> None:
    call_http(server, "POST", "/v2/repository/index", b"{}", [(ADMIN_KEY_HEADER, KEY)])
    text = log.read_text(errors="replace")
    assert "Started HTTPService" in text, "it is the log"
    assert KEY not in text
    for path in ("/v2", "/v2/health/ready", f"{_MODEL_PATH}/config", f"/v2/models/{MODEL}", "/none"):
        assert KEY not in call_http(server, "GET", path)[1]
    assert KEY not in repr(server.options)
    assert KEY not in "".join(capfd.readouterr())


def test_where_the_key_can_be_seen(server: TritonServer) -> None:
    """Triton takes the key on its command line alone, which every user of the machine can read; SECURITY.md says so."""
    assert KEY in Path(f"/proc/{server.pid}/cmdline").read_text()


def test_each_server_makes_its_own_key(small_server: TritonServer, server: TritonServer) -> None:
    """Without MLCLS_ADMIN_KEY nobody can know it; what is closed by default, is closed there too."""
    assert len(small_server.admin_key) >= 32
    assert small_server.admin_key != server.admin_key
    for api, method, path, body in HTTP_CALLS:
        status, _ = call_http(small_server, method, path.replace(MODEL, "small_with_sigmoid"), body)
        assert (status == 403) is (api != "statistics"), (api, path)
