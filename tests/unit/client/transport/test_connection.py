"""TLS, headers and the key, over both protocols; no secret in `repr` or an error."""

import importlib
import io
import ssl
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from shutil import which
from typing import Any

import pytest
from PIL import Image

from mlcls_client import DeadlineExceededError, InvalidRequestError, ServerUnavailableError, create_model
from mlcls_client.testing import FakeServer
from mlcls_client.transport.connection import read_connection

NAME = "PP-LCNet_x1_0_ML"
SECRET = "s3cr3t-k3y"


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (200, 0, 0)).save(buffer, format="PNG")
    return buffer.getvalue()


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


def test_headers_go_with_every_request_over_grpc() -> None:
    with (
        FakeServer(NAME) as server,
        create_model(NAME, url=server.url, headers={"X-Tenant": "a b"}, api_key=SECRET) as model,
    ):
        assert model.is_ready()
        assert len(list(model.predict([png()] * 3, batch_size=2))) == 3
        assert len(server.headers) == 5, "two of readiness, one of configuration, two of inference"
        for sent in server.headers:
            assert sent["x-tenant"] == "a b"
            assert sent["authorization"] == f"Bearer {SECRET}"


def test_headers_go_with_every_request_over_http(start_http: Callable[..., Any]) -> None:
    server = start_http()
    options: Any = {"headers": {"X-Tenant": "a b"}, "api_key": SECRET}
    with create_model(NAME, url=server.url, protocol="http", **options) as model:
        assert model.is_ready()
        assert len(list(model.predict([png()], batch_size=2))) == 1
    assert len(server.headers) == 4
    for sent in server.headers:
        lower = {name.lower(): value for name, value in sent.items()}
        assert lower["x-tenant"] == "a b"
        assert lower["authorization"] == f"Bearer {SECRET}"


@pytest.mark.parametrize(
    "options",
    [
        {"headers": {"x y": SECRET}},
        {"headers": {"x-bin": SECRET}},
        {"headers": {"grpc-x": SECRET}},
        {"headers": {"Content-Length": SECRET}},
        {"headers": {"x": SECRET + "\r\ny: z"}},
        {"headers": {"x": SECRET + "ä"}},
        {"headers": {"x": 3}},
        {"headers": {"x": SECRET, "X": SECRET}},
        {"headers": {"Authorization": SECRET}, "api_key": SECRET},
        {"headers": [("x", SECRET)]},
        {"api_key": SECRET + "\n"},
        {"api_key": ""},
        {"retries": -1},
        {"retries": True},
        {"ssl": 1},
        {"ssl": "missing.pem"},
        {"ssl": {"roots": "x.pem"}},
        {"ssl": {"private_key": __file__}},
    ],
)
def test_wrong_options_are_refused_at_once_and_secrets_not_told(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        create_model(NAME, **options)
    assert SECRET not in str(caught.value)
    assert "header" in str(caught.value) or "Expected" in str(caught.value)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_secrets_are_in_no_repr_and_no_error(protocol: str) -> None:
    assert SECRET not in repr(read_connection(NAME, None, "grpc", 1.0, headers={"x": SECRET}, api_key=SECRET + "2"))
    options: Any = {"headers": {"x": SECRET}, "api_key": SECRET}
    with create_model(NAME, url="127.0.0.1:9", protocol=protocol, timeout_s=2, **options) as model:
        assert SECRET not in repr(model) + repr(vars(model)) + repr(vars(model._model))
        with pytest.raises(ServerUnavailableError) as caught:
            list(model.predict(png()))
    error: BaseException | None = caught.value
    while error is not None:
        assert SECRET not in repr(error) + str(error)
        error = error.__cause__


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_tls(protocol: str, certificates: Path, start_http: Callable[..., Any]) -> None:
    root = certificates / "cert.pem"
    with FakeServer(NAME, credentials=grpc_credentials(certificates)) as grpc_server:
        port = grpc_server.port if protocol == "grpc" else start_http(server_context(certificates)).server_port
        for given in (root, str(root), {"root_certificates": root}):
            with create_model(NAME, f"localhost:{port}", protocol, 10, ssl=given) as model:
                assert len(list(model.predict(png()))) == 1
        for refused in (False, True, certificates / "other.pem"):
            with (
                create_model(NAME, f"localhost:{port}", protocol, 2, ssl=refused) as model,
                pytest.raises((ServerUnavailableError, DeadlineExceededError)),
            ):
                list(model.predict(png()))


def test_a_certificate_that_is_not_trusted_is_not_tried_again(
    certificates: Path, start_http: Callable[..., Any]
) -> None:
    server, begin = start_http(server_context(certificates)), time.monotonic()
    with (
        create_model(NAME, server.url, "http", 10, ssl=certificates / "other.pem", retries=100) as model,
        pytest.raises(ServerUnavailableError, match="certificate verify failed"),
    ):
        list(model.predict(png()))
    assert time.monotonic() - begin < 3


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_tls_where_the_server_wants_to_know_its_clients(
    protocol: str, certificates: Path, start_http: Callable[..., Any]
) -> None:
    roots = {"root_certificates": certificates / "cert.pem"}
    known = {**roots, "certificate_chain": certificates / "cert.pem", "private_key": certificates / "key.pem"}
    with FakeServer(NAME, credentials=grpc_credentials(certificates, True)) as grpc_server:
        port = grpc_server.port if protocol == "grpc" else start_http(server_context(certificates, True)).server_port
        with create_model(NAME, f"localhost:{port}", protocol, 10, ssl=known) as model:
            assert len(list(model.predict(png()))) == 1
        with (
            create_model(NAME, f"localhost:{port}", protocol, 2, ssl=roots) as model,
            pytest.raises((ServerUnavailableError, DeadlineExceededError)),
        ):
            list(model.predict(png()))


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_file_that_is_no_certificate(protocol: str, tmp_path: Path) -> None:
    (tmp_path / "cert.pem").write_text("junk")
    with (
        pytest.raises(InvalidRequestError, match="Expected ssl to name PEM files"),
        create_model(NAME, "127.0.0.1:9", protocol, 2, ssl=tmp_path / "cert.pem") as model,
    ):
        list(model.predict(png()))
