"""The gateway in front of the real server: who gets in, what gets through, and what the log tells."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import ssl
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tritonclient.grpc import InferenceServerClient, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from mlcls.base.processes import free_ports
from mlcls.server.http_api import HttpApi, HttpStatusError, NoAnswerError
from mlcls.server.options import ADMIN_KEY_HEADER, ADMIN_KEY_VARIABLE
from mlcls.server.process import TritonServer
from mlcls_client import MlclsClientError, MultiLabelResult, ServerError, create_model
from support.closed_calls import call_grpc, grpc_calls, http_calls
from support.gateway_process import Gateway, make_certificate, make_key, run_gateway
from support.processes import ROOT, start_server
from support.served_models import SMALL_LABELS, SmallModels
from support.settling import wait_for
from support.triton_request import make_input

MODEL = "small_with_sigmoid"
ADMIN_KEY = "the-right-admin-key"
KEYS = {"alice": make_key(), "bob": make_key()}
MAX_REQUEST_BYTES = 3_000_000

# Method and path of everything that Triton closes, and of what its patterns could be talked into.
CLOSED_CALLS = [
    *((method, path) for _, method, path, _ in http_calls(MODEL)),
    ("GET", "/v2/models//stats"),
    ("POST", f"/v2/models/{MODEL}/generate"),
    ("GET", "/metrics"),
    ("GET", f"/v2/models/{MODEL}/../../repository/index"),
    ("GET", f"/v2/models/{MODEL}/./../stats"),
    ("GET", f"/v2/models/{MODEL}/stats?/infer"),
    ("PUT", f"/v2/models/{MODEL}/infer"),
    ("POST", f"/v2/models/{MODEL}/config"),
    ("POST", "/inference.GRPCInferenceService/RepositoryIndex"),
]
ALICE = {"authorization": f"Bearer {KEYS['alice']}"}
HEAD = f"POST /v2/models/{MODEL}/infer HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture(scope="module")
def server(small_models: SmallModels) -> Iterator[TritonServer]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ADMIN_KEY_VARIABLE, ADMIN_KEY)
        with start_server(small_models.repository, MODEL) as server:
            yield server


@pytest.fixture(scope="module")
def gateway(server: TritonServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with run_gateway(
        tmp_path_factory.mktemp("gateway"), server, KEYS, MAX_REQUEST_BYTES=str(MAX_REQUEST_BYTES)
    ) as gateway:
        yield gateway


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_the_right_key_is_served(
    gateway: Gateway, server: TritonServer, sample_images: list[Path], protocol: str
) -> None:
    photos = [str(path) for path in sample_images if path.stat().st_size < 50_000][:5]
    assert len(photos) == 5
    direct = server.grpc_url if protocol == "grpc" else server.http_url
    expected = list(create_model(MODEL, url=direct, protocol=protocol).predict(photos, threshold=0))
    for key in KEYS.values():
        model = gateway.model(MODEL, key, protocol)
        for result, one in zip(model.predict(photos, batch_size=3, threshold=0), expected, strict=True):
            assert result.input_path == one.input_path
            assert scores_by_label(result) == pytest.approx(scores_by_label(one), abs=2e-5)


def scores_by_label(result: MultiLabelResult) -> dict[str, float]:
    """They may differ by the engine's last bits in a batch of another size."""
    return dict(zip(result.label_names, result.scores, strict=True))


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize(
    "key",
    [None, make_key(), "x", KEYS["alice"][:-1], f"{KEYS['alice']}a", KEYS["alice"].upper()],
    ids=["none", "another", "short", "less", "more", "upper case"],
)
def test_any_other_key_is_refused(gateway: Gateway, sample_images: list[Path], protocol: str, key: str | None) -> None:
    model = gateway.model(MODEL, key, protocol)
    with pytest.raises(ServerError, match="expected a known API key in the header 'authorization: Bearer KEY'"):
        list(model.predict(str(sample_images[0])))


def test_a_key_counts_in_its_header_alone(gateway: Gateway) -> None:
    key = KEYS["alice"]
    assert gateway.request("GET", "/v2", authorization=key)[0] == 401
    assert gateway.request("GET", "/v2", authorization=f"Basic {key}")[0] == 401
    assert gateway.request("GET", f"/v2?authorization={key}")[0] == 401
    assert gateway.request("GET", "/v2", x_api_key=key)[0] == 401
    assert gateway.request("GET", "/v2", key)[0] == 200
    for path in ("/v2", "/v2/health/ready", f"/v2/models/{MODEL}/infer", "/v2/repository/index", "/nothing"):
        status, body = gateway.request("GET", path)
        assert (status, json.loads(body)["error"][:30]) == (401, "expected a known API key in th")
    with gateway.grpc_client() as client, pytest.raises(InferenceServerException, match="UNAUTHENTICATED"):
        client.get_model_repository_index()


@pytest.mark.parametrize(("method", "path"), CLOSED_CALLS)
def test_closed_calls_over_http(gateway: Gateway, server: TritonServer, method: str, path: str) -> None:
    status, body = gateway.request(method, path, KEYS["alice"], mlcls_admin_key=ADMIN_KEY)
    assert (status, json.loads(body)["error"][:32]) == (403, "this call is closed from outside"), (path, status, body)
    assert is_model_ready(server)


@pytest.mark.parametrize("path", [f"/v2/models/{MODEL}%2fstats", f"/v2/models/{MODEL}%5cstats", "/v2/models/..%2fx"])
def test_ambiguous_paths(gateway: Gateway, path: str) -> None:
    status, body = gateway.request("GET", path, KEYS["alice"])
    assert status in (400, 403)
    assert "expected a plain path" in body or "closed from outside" in body


def test_closed_calls_over_grpc(gateway: Gateway, server: TritonServer) -> None:
    headers = [*ALICE.items(), (f"triton-grpc-protocol-{ADMIN_KEY_HEADER}", ADMIN_KEY)]
    credentials = grpc.ssl_channel_credentials(gateway.certificate.read_bytes())
    with grpc.secure_channel(gateway.url, credentials) as channel:
        for _, method, fields in grpc_calls(MODEL):
            answer = call_grpc(channel, method, fields, headers)
            assert answer.startswith("PERMISSION_DENIED: this call is closed from outside"), (method, answer)
    assert is_model_ready(server)


def test_the_admin_key_works_inside(server: TritonServer) -> None:
    """What the gateway refuses above is refused by the gateway and not by Triton for want of a right key."""
    with InferenceServerClient(server.grpc_url) as client:
        index = client.get_model_repository_index(headers={f"triton-grpc-protocol-{ADMIN_KEY_HEADER}": ADMIN_KEY})
    assert MODEL in {model.name for model in index.models}


def test_open_calls(gateway: Gateway) -> None:
    key = KEYS["bob"]
    for path in ("/v2", "/v2/health/live", "/v2/health/ready", f"/v2/models/{MODEL}", f"/v2/models/{MODEL}/ready"):
        assert gateway.request("GET", path, key)[0] == 200, path
    status, body = gateway.request("GET", f"/v2/models/{MODEL}/versions/1/config", key)
    assert (status, json.loads(body)["max_batch_size"]) == (200, 32)
    headers = {"authorization": f"Bearer {key}"}
    with gateway.grpc_client() as client:
        assert client.is_server_live(headers=headers)
        assert client.is_server_ready(headers=headers)
        assert client.is_model_ready(MODEL, headers=headers)
        assert client.get_server_metadata(headers=headers).name == "triton"
        assert client.get_model_metadata(MODEL, headers=headers).name == MODEL


@pytest.mark.parametrize("size", [MAX_REQUEST_BYTES, MAX_REQUEST_BYTES + 1, 4 * MAX_REQUEST_BYTES])
def test_the_size_limit_over_http(gateway: Gateway, size: int) -> None:
    status, body = infer(gateway, b"\0" * size)
    error = json.loads(body)["error"]
    if size <= MAX_REQUEST_BYTES:
        assert (status, "expected" in error and "larger" not in error) == (400, True), error  # Triton's: no image
    else:
        assert status == 413
        assert error.startswith(f"expected a request of at most {MAX_REQUEST_BYTES} bytes, got a larger one;")


def test_the_size_limit_over_grpc(gateway: Gateway) -> None:
    tensor = make_input([b"\0" * (MAX_REQUEST_BYTES + 1)])
    with (
        gateway.grpc_client() as client,
        pytest.raises(InferenceServerException, match=r"RESOURCE_EXHAUSTED.*at most 3000000 bytes, got a larger one"),
    ):
        client.infer(MODEL, [tensor], headers=ALICE)


def test_the_client_hears_of_the_size_limit(gateway: Gateway, tmp_path: Path) -> None:
    """All of a request is sent before the answer is read, so a gateway that hung up would be a broken connection."""
    photo = tmp_path / "photo.bmp"
    Image.fromarray(np.zeros((1600, 1700, 3), np.uint8)).save(photo)
    assert 2 * MAX_REQUEST_BYTES < photo.stat().st_size < 4 * MAX_REQUEST_BYTES
    for protocol in ("grpc", "http"):
        model = gateway.model(MODEL, KEYS["alice"], protocol)
        with pytest.raises(MlclsClientError, match="expected a request of at most 3000000 bytes, got a larger one"):
            list(model.predict(str(photo)))


def test_a_size_that_is_not_announced(gateway: Gateway) -> None:
    with tls_socket(gateway) as connection:
        head = f"{HEAD}Authorization: {ALICE['authorization']}\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(f"{head}{MAX_REQUEST_BYTES + 1:x}\r\n".encode())
        connection.sendall(b"\0" * (MAX_REQUEST_BYTES + 1))
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 Payload Too Large\r\n")


DEEP = b'{"inputs":[{"name":"image","shape":[1,1],"datatype":"BYTES","data":' + b"[" * 100_000 + b"]" * 100_000 + b"}]}"


def json_request(image: bytes, **parts: Any) -> tuple[bytes, dict[str, str]]:
    """Return body and headers of a request with JSON before the image; a part may be given as the text of its JSON."""
    tensor = struct.pack("<I", len(image)) + image
    size = {"binary_data_size": len(tensor)}
    parts = {"inputs": [{"name": "image", "shape": [1, 1], "datatype": "BYTES", "parameters": size}], **parts}
    texts = (f'"{key}":{part if isinstance(part, str) else json.dumps(part)}' for key, part in parts.items())
    header = ("{" + ",".join(texts) + "}").encode()
    return header + tensor, {"Inference_Header_Content_Length": str(len(header))}


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"outputs": [{"name": "result", "parameters": {"classification": 1}}]}, "without 'classification'"),
        ({"outputs": r'[{"name":"result","parameters":{"\u0063lassi\u0066ication":1}}]'}, "without 'classification'"),
        ({"inputs": DEEP[DEEP.index(b":") + 1 : -1].decode()}, "at most 1000 lists and objects"),
        ({"id": '"' + "x" * (1 << 20) + '"'}, "at most 1048576 bytes of JSON"),
    ],
)
def test_json_that_would_end_triton_or_fill_its_memory(
    gateway: Gateway, server: TritonServer, sample_images: list[Path], parts: dict[str, Any], words: str
) -> None:
    body, headers = json_request(sample_images[0].read_bytes(), **parts)
    status, answer = gateway.request("POST", f"/v2/models/{MODEL}/infer", KEYS["alice"], body, **headers)
    assert (status, words in json.loads(answer)["error"]) == (422, True), answer
    assert is_model_ready(server)


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({}, "Inference-Header-Content-Length"),
        ({"Inference_Header_Content_Length": f"{len(DEEP) + 1}"}, "Inference-Header-Content-Length"),
        ({"Inference_Header_Content_Length": "-1"}, "Inference-Header-Content-Length"),
        ({"Inference_Header_Content_Length": "0x10"}, "Inference-Header-Content-Length"),
        ({"Inference_Header_Content_Length": "0", "Content_Encoding": "gzip"}, "without content-encoding"),
    ],
)
def test_a_body_without_binary_data_or_that_is_compressed(
    gateway: Gateway, server: TritonServer, headers: dict[str, str], words: str
) -> None:
    status, answer = gateway.request("POST", f"/v2/models/{MODEL}/infer", KEYS["alice"], DEEP, **headers)
    assert (status, words in json.loads(answer)["error"]) == (422, True), answer
    assert is_model_ready(server)


def test_a_body_in_a_million_chunks_reaches_triton_as_one(gateway: Gateway, server: TritonServer) -> None:
    head = f"{HEAD}Authorization: {ALICE['authorization']}\r\nInference-Header-Content-Length: 0\r\n"
    with tls_socket(gateway) as connection:
        connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        connection.sendall(b"1\r\nx\r\n" * 1_000_000 + b"0\r\n\r\n")
        answer = connection.recv(10_000)
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"got text (1000000 bytes" in answer
    assert is_model_ready(server)


def test_a_body_that_is_called_a_form(server: TritonServer, tmp_path: Path) -> None:
    """As curl calls any body; Triton 2.51 ends at one of 4 MB."""
    with run_gateway(tmp_path, server, KEYS) as gateway:
        status, answer = infer(gateway, b"\0" * 10_000_000, Content_Type="application/x-www-form-urlencoded")
    assert (status, "got unknown data (10000000 bytes" in answer) == (400, True), answer
    assert is_model_ready(server)


def test_the_content_of_grpc_requests(gateway: Gateway, server: TritonServer, sample_images: list[Path]) -> None:
    tensor = make_input([sample_images[0].read_bytes()])
    top = InferRequestedOutput("result", class_count=1)
    options: list[tuple[str, dict[str, Any], str]] = [
        (MODEL, {"outputs": [top]}, "without 'classification'"),
        (MODEL, {"compression_algorithm": "gzip"}, "a message without compression"),
        (f"{MODEL}_preprocess", {}, "a step of one, which is closed"),
        (f"{MODEL}_engine_12", {}, "a step of one, which is closed"),
    ]
    with gateway.grpc_client() as client:
        for model, option, words in options:
            with pytest.raises(InferenceServerException, match=f"INVALID_ARGUMENT.*{words}"):
                client.infer(model, [tensor], headers=ALICE, **option)
    status, answer = infer(gateway, b"x", model=f"{MODEL}_postprocess")
    assert (status, "a step of one, which is closed" in answer) == (422, True)
    assert is_model_ready(server)


@pytest.mark.parametrize(
    "content",
    [
        b"\x32\x80\x80\x80\x80\x10",  # a tag that only looks like another
        b"\xb2\x80\x80\x80\x10\x00",
        b"\x0a\x05ab",  # longer than the message
        b"\x0a\xff\xff\xff\xff\xff\x01",
        b"\x08\x01",
        b"\x0a\x00" * 1001,
        b"\x0a",
    ],
)
def test_messages_that_are_no_inference_request(gateway: Gateway, server: TritonServer, content: bytes) -> None:
    credentials = grpc.ssl_channel_credentials(gateway.certificate.read_bytes())
    with grpc.secure_channel(gateway.url, credentials) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.RpcError) as raised:
            call(content, metadata=list(ALICE.items()), timeout=30)
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "expected one ModelInferRequest" in raised.value.details()


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_an_image_may_have_any_content(
    gateway: Gateway, sample_images: list[Path], tmp_path: Path, protocol: str
) -> None:
    """What is looked for in requests occurs in the image, as a comment, and in a threshold of a label."""
    photo = tmp_path / "photo.png"
    text = PngInfo()
    text.add_text("Comment", '{"classification": ' + "[" * 2000)
    with Image.open(sample_images[0]) as image:
        image.save(photo, pnginfo=text)
    assert b'"classification"' in photo.read_bytes()
    model = gateway.model(MODEL, KEYS["alice"], protocol)
    (result,) = model.predict(str(photo), threshold={"default": 0.0, "собака": 1.0})
    assert isinstance(result, MultiLabelResult)
    assert set(result["label_names"]) == {*SMALL_LABELS} - {"собака"}


def test_a_body_of_a_stranger_is_not_read(gateway: Gateway) -> None:
    """The refusal comes before the body, which is only announced."""
    with tls_socket(gateway) as connection:
        connection.sendall(f"{HEAD}Content-Length: 1000\r\n\r\n".encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 401 Unauthorized\r\n")


def test_each_client_has_its_own_rate(server: TritonServer, tmp_path: Path) -> None:
    keys = {**KEYS, "carol": make_key()}
    with run_gateway(tmp_path, server, keys, REQUESTS_PER_SECOND="1", BURST="5") as gateway:
        statuses = [gateway.request("GET", "/v2", keys["alice"])[0] for _ in range(15)]
        assert statuses[:5] == [200] * 5
        assert statuses.count(429) >= 5
        assert gateway.request("GET", "/v2", keys["bob"])[0] == 200
        status, body = gateway.request("GET", "/v2", keys["alice"])
        if status == 429:
            assert json.loads(body)["error"].startswith("expected at most 1 requests a second (5 at once)")
        headers = {"authorization": f"Bearer {keys['carol']}"}
        with (
            gateway.grpc_client() as client,
            pytest.raises(InferenceServerException, match=r"RESOURCE_EXHAUSTED.*later"),
        ):
            for _ in range(15):
                client.is_server_live(headers=headers)


def test_slow_requests_end(server: TritonServer, tmp_path: Path) -> None:
    with run_gateway(tmp_path, server, KEYS, TIMEOUT_S="2") as gateway, tls_socket(gateway) as connection:
        head = f"{HEAD}Authorization: {ALICE['authorization']}\r\nContent-Length: 1000\r\n\r\n"
        connection.sendall(f"{head}part".encode())
        answer = connection.recv(10_000)
        assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
        assert b"expected the whole request within 2 s, got a part of it" in answer


def test_a_client_does_not_steer_the_gateway(gateway: Gateway, sample_images: list[Path]) -> None:
    """Envoy takes these headers from clients that it believes to be its own: inference takes more than 1 ms."""
    limits = {"X_Envoy_Upstream_Rq_Timeout_Ms": "1", "X_Envoy_Upstream_Rq_Per_Try_Timeout_Ms": "1"}
    status, body = infer(gateway, sample_images[0].read_bytes(), **limits)
    assert status == 200, body


def test_a_server_that_hangs(server: TritonServer, tmp_path: Path) -> None:
    words = "no answer within the gateway's limit of 2 s"
    with run_gateway(tmp_path, server, KEYS, TIMEOUT_S="2") as gateway, gateway.grpc_client() as client:
        os.kill(server.pid, signal.SIGSTOP)
        try:
            status, body = gateway.request("GET", "/v2", KEYS["alice"])
            assert (status, json.loads(body)) == (504, {"error": words})
            with pytest.raises(InferenceServerException, match=f"UNAVAILABLE.*{words}"):
                client.is_server_live(headers=ALICE)
        finally:
            os.kill(server.pid, signal.SIGCONT)


def test_keys_change_without_a_restart(server: TritonServer, tmp_path: Path) -> None:
    new = make_key()

    with run_gateway(tmp_path, server, KEYS) as gateway:

        def status(key: str) -> int:
            return gateway.request("GET", "/v2", key)[0]

        assert (status(KEYS["alice"]), status(new)) == (200, 401)
        gateway.write_keys({"alice": KEYS["alice"], "carol": new})
        wait_for(lambda: status(new) == 200)
        assert (status(KEYS["alice"]), status(KEYS["bob"])) == (200, 401)
        gateway.write_keys({"alice": KEYS["alice"]}, "bob short")
        wait_for(lambda: "the API keys stay as they were" in gateway.log)
        assert "api_keys, line 3: expected a key of at least 32 characters" in gateway.log
        assert (status(KEYS["alice"]), status(new)) == (200, 200)
        gateway.write_keys({"carol": new})
        wait_for(lambda: status(KEYS["alice"]) == 401)
        assert status(new) == 200
        assert not any(key in gateway.log for key in (*KEYS.values(), new))


def test_the_certificate_changes_without_a_restart(server: TritonServer, tmp_path: Path) -> None:
    with run_gateway(tmp_path, server, KEYS) as gateway:

        def served() -> str:
            return ssl.get_server_certificate(("localhost", gateway.port)).strip()

        before = served()
        assert before == gateway.certificate.read_text().strip()
        (gateway.secrets / "tls.key").write_text("not a key")
        wait_for(lambda: "the certificate stays as it was" in gateway.log)
        assert served() == before
        make_certificate(gateway.secrets)
        wait_for(lambda: served() == gateway.certificate.read_text().strip())
        assert served() != before
        assert gateway.request("GET", "/v2", KEYS["alice"])[0] == 200


def test_nothing_without_tls(gateway: Gateway) -> None:
    with pytest.raises(NoAnswerError, match=r"reset|refused|closed|remote"):
        HttpApi(f"localhost:{gateway.port}").request("/v2", 10)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls_versions(gateway: Gateway, version: ssl.TLSVersion) -> None:
    with tls_socket(gateway, version) as connection:
        assert connection.version() == version.name.replace("_", ".")


def test_old_tls_is_refused(gateway: Gateway) -> None:
    arguments = ["-connect", f"localhost:{gateway.port}", "-tls1_1", "-cipher", "ALL:@SECLEVEL=0"]
    process = subprocess.run(["openssl", "s_client", *arguments], capture_output=True, stdin=subprocess.DEVNULL)
    assert process.returncode != 0
    assert b"alert protocol version" in process.stderr


def test_the_log_names_the_client_and_no_key(gateway: Gateway) -> None:
    path = f"/v2/models/{MODEL}"
    assert gateway.request("GET", f"{path}?token={KEYS['bob']}", KEYS["alice"])[0] == 200
    wrong = make_key()
    assert gateway.request("GET", "/v2/health/live", wrong)[0] == 401

    def lines() -> list[dict[str, Any]]:
        return [json.loads(line) for line in gateway.log.splitlines() if line.startswith("{")]

    wait_for(lambda: any(line["path"] == "/v2/health/live" and line["status"] == 401 for line in lines()))
    line = next(line for line in reversed(lines()) if line["path"] == path)
    assert (line["client"], line["status"], line["method"]) == ("alice", 200, "GET")
    refused = next(line for line in reversed(lines()) if line["path"] == "/v2/health/live" and line["status"] == 401)
    assert refused["client"] == "unknown"
    assert not any(key in gateway.log for key in (*KEYS.values(), wrong, ADMIN_KEY))
    assert "work-in-progress" not in gateway.log
    assert "[warning]" not in gateway.log


def test_the_metrics_port_tells_metrics_alone(gateway: Gateway) -> None:
    api = HttpApi(f"127.0.0.1:{gateway.metrics_port}")
    assert b"envoy_http_downstream_rq_xx" in api.request("/metrics", 10)
    for path in ("/config_dump", "/quitquitquit", "/stats", "/certs", "/metrics/../config_dump"):
        with pytest.raises(HttpStatusError, match="HTTP status 404"):
            api.request(path, 10)


def test_the_files_that_hold_keys_are_private(gateway: Gateway) -> None:
    run = gateway.secrets.parent / "run"
    assert run.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o077 for path in run.iterdir()} == {0}


def test_the_health_check(gateway: Gateway) -> None:
    def check(port: int) -> int:
        command: list[str | Path] = ["bash", ROOT / "docker" / "gateway" / "check_ready.sh"]
        return subprocess.run(command, env={**os.environ, "METRICS_PORT": str(port)}, capture_output=True).returncode

    assert check(gateway.metrics_port) == 0
    assert check(free_ports(1)[0]) != 0


def test_without_triton(tmp_path: Path) -> None:
    http_port, grpc_port = map(str, free_ports(2))
    address = {"TRITON_HOST": "127.0.0.1", "TRITON_HTTP_PORT": http_port, "TRITON_GRPC_PORT": grpc_port}
    gateway = Gateway(tmp_path, KEYS, address)
    try:
        wait_for(lambda: answers(gateway))
        assert gateway.request("GET", "/healthz")[0] == 503
        status, body = gateway.request("GET", "/v2", KEYS["alice"])
        assert (status, json.loads(body)["error"][:26]) == (503, "Triton does not answer; it")
        with gateway.grpc_client() as client, pytest.raises(InferenceServerException, match="Triton does not answer"):
            client.is_server_live(headers=ALICE)
    finally:
        gateway.stop()


def answers(gateway: Gateway) -> bool:
    with contextlib.suppress(OSError):
        return gateway.request("GET", "/healthz")[0] in (200, 503)
    return False


def infer(gateway: Gateway, image: bytes, model: str = MODEL, **headers: str) -> tuple[int, str]:
    headers = {"Inference_Header_Content_Length": "0", "Content_Type": "application/octet-stream", **headers}
    return gateway.request("POST", f"/v2/models/{model}/infer", KEYS["alice"], image, **headers)


@contextlib.contextmanager
def tls_socket(gateway: Gateway, version: ssl.TLSVersion | None = None) -> Iterator[ssl.SSLSocket]:
    context = ssl.create_default_context(cafile=gateway.certificate)
    if version is not None:
        context.minimum_version = context.maximum_version = version
    with (
        socket.create_connection(("localhost", gateway.port), timeout=30) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        yield connection


def is_model_ready(server: TritonServer) -> bool:
    with InferenceServerClient(server.grpc_url) as client:
        return bool(client.is_model_ready(MODEL))
