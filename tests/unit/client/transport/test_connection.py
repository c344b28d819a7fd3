"""TLS, headers and the key, over both protocols; no secret in `repr` or an error."""

import importlib
import ssl
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from shutil import which
from typing import Any

import pytest

from mlcls_client import DeadlineExceededError, InvalidRequestError, ServerUnavailableError, create_model
from mlcls_client.testing import FakeServer
from mlcls_client.transport.connection import read_connection
from support.client_images import NAME, encode

SECRET = "s3cr3t-k3y"
UNREACHABLE = (ServerUnavailableError, DeadlineExceededError)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`cert.pem` and `key.pem` of localhost, which vouches for itself, and `other.pem` of somebody else."""
    openssl = which("openssl")
    if openssl is None:
        pytest.skip("makes certificates with openssl")
    folder = tmp_path_factory.mktemp("certificates")
    for name, key in (("cert", "key"), ("other", "other_key")):
        command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        command += ["-keyout", str(folder / f"{key}.pem"), "-out", str(folder / f"{name}.pem"), "-days", "2"]
        command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
        subprocess.run(command, check=True, capture_output=True)
    return folder


def server_context(folder: Path, wants_client: bool = False) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    if wants_client:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(folder / "cert.pem")
    return context


def grpc_credentials(folder: Path, wants_client: bool = False) -> Any:
    grpc: Any = importlib.import_module("grpc")
    key, certificate = (folder / "key.pem").read_bytes(), (folder / "cert.pem").read_bytes()
    roots = certificate if wants_client else None
    return grpc.ssl_server_credentials([(key, certificate)], roots, wants_client)


def test_headers_go_with_every_request(protocol: str, asked: Any) -> None:
    with create_model(NAME, asked.url, protocol, headers={"X-Tenant": "a b"}, api_key=SECRET) as model:
        assert model.is_ready()
        assert len(list(model.predict([encode()], batch_size=2))) == 1
    assert len(asked.headers) == 4, "two of readiness, one of configuration, one of inference"
    for sent in asked.headers:
        lower = {name.lower(): value for name, value in sent.items()}
        assert (lower["x-tenant"], lower["authorization"]) == ("a b", f"Bearer {SECRET}")


@pytest.mark.parametrize(
    "options",
    [
        {"headers": {"x-bin": SECRET}},
        {"headers": {"grpc-x": SECRET}},
        {"headers": {"Content-Length": SECRET}},
        {"headers": {"x": SECRET + "\r\ny: z"}},
        {"headers": {"x": 3}},
        {"headers": {"x": SECRET, "X": SECRET}},
        {"headers": {"Authorization": SECRET}, "api_key": SECRET},
        {"headers": [("x", SECRET)]},
        {"api_key": SECRET + "\n"},
        {"retries": -1},
        {"retries": True},
        {"ssl": 1},
        {"ssl": "missing.pem"},
        {"ssl": {"roots": "x.pem"}},
        {"ssl": {"private_key": __file__}},
        {"ssl": __file__},
        {"protocol": "ftp"},
        {"url": "http://localhost:8000"},
        {"url": "dns:///localhost"},
        {"url": "localhost:8001,localhost:8002"},
        {"url": "127.0.0.1:8001,[::1]:8001"},
        {"url": "127.0.0.1:8001,127.0.0.1"},
        {"url": "dns:///127.0.0.1:8001,127.0.0.1:8002"},
        {"url": "127.0.0.1:8000,127.0.0.1:8001", "protocol": "http"},
        {"url": "dns:///localhost:8001", "shared_memory": True},
        {"timeout_s": 0},
        {"model_name": ""},
        {"model_dir": "folder"},
        {"batch_size": 0},
        {"threshold": "0.5"},
    ],
)
def test_wrong_options_are_refused_at_once_and_secrets_not_told(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match=r"header|Expected") as caught:
        create_model(**{"model_name": NAME, **options})
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "target", "is_local"),
    [
        ("triton:8001", "triton:8001", False),
        ("dns:///localhost:8001", "dns:///localhost:8001", True),
        ("127.0.0.1:8001,127.0.0.2:8001", "ipv4:127.0.0.1:8001,127.0.0.2:8001", True),
        ("[::1]:8001,[::2]:8001", "ipv6:[::1]:8001,[::2]:8001", False),
    ],
)
def test_addresses_of_several_servers(url: str, target: str, is_local: bool) -> None:
    connection = read_connection(NAME, url, "grpc", 1.0)
    assert (connection.grpc_target, connection.is_local) == (target, is_local)
    assert connection.has_replicas == (url != "triton:8001")


def test_options_that_only_the_server_can_follow_are_told(client_log: pytest.LogCaptureFixture) -> None:
    create_model(NAME, device="gpu:0", use_hpip=True, engine="hpi", pp_option={"a": 1}, hpi_config={}).close()
    for told in ("device='gpu:0'", "use_hpip=True", "engine='hpi'", "pp_option={'a': 1}", "hpi_config={}"):
        assert f"{told} has no effect" in client_log.text
    client_log.clear()
    create_model(NAME, device=None, use_hpip=False).close()
    assert client_log.text == ""
    with pytest.raises(TypeError, match="unexpected keyword argument 'devise'"):
        create_model(NAME, devise="gpu:0")


def test_secrets_are_in_no_repr_and_no_error(protocol: str) -> None:
    options: Any = {"headers": {"x": SECRET}, "api_key": SECRET}
    assert SECRET not in repr(read_connection(NAME, None, protocol, 1.0, admin_key=SECRET, **options))
    with create_model(NAME, url="127.0.0.1:9", protocol=protocol, timeout_s=2, **options) as model:
        assert SECRET not in repr(model) + repr(vars(model)) + repr(vars(model._model))
        with pytest.raises(ServerUnavailableError) as caught:
            list(model.predict(encode()))
    error: BaseException | None = caught.value
    while error is not None:
        assert SECRET not in repr(error) + str(error)
        error = error.__cause__


@pytest.mark.parametrize("wants_client", [False, True])
def test_tls(protocol: str, wants_client: bool, certificates: Path, start_http: Callable[..., Any]) -> None:
    root = certificates / "cert.pem"
    known = {"root_certificates": root, "certificate_chain": root, "private_key": certificates / "key.pem"}
    accepted = [known] if wants_client else [root, str(root), {"root_certificates": root}]
    refused = [root] if wants_client else [False, True, certificates / "other.pem"]
    with FakeServer(NAME, credentials=grpc_credentials(certificates, wants_client)) as grpc_server:
        context = server_context(certificates, wants_client)
        port = grpc_server.port if protocol == "grpc" else start_http(context).server_port
        for given in accepted:
            with create_model(NAME, f"localhost:{port}", protocol, 10, ssl=given) as model:  # type: ignore[arg-type]
                assert len(list(model.predict(encode()))) == 1
        for given in refused:
            with create_model(NAME, f"localhost:{port}", protocol, 2, ssl=given) as model, pytest.raises(UNREACHABLE):  # type: ignore[arg-type]
                list(model.predict(encode()))


def test_a_certificate_that_is_not_trusted_is_not_tried_again(
    certificates: Path, start_http: Callable[..., Any]
) -> None:
    server, begin = start_http(server_context(certificates)), time.monotonic()
    with (
        create_model(NAME, server.url, "http", 10, ssl=certificates / "other.pem", retries=100) as model,
        pytest.raises(ServerUnavailableError, match="certificate verify failed"),
    ):
        list(model.predict(encode()))
    assert time.monotonic() - begin < 3
