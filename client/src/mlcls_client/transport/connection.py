"""How to connect: address, TLS, headers, keys, retries. No `repr` and no error message contains a secret."""

from __future__ import annotations

import importlib
import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias, Union

from mlcls_client.errors import InvalidRequestError

Ssl: TypeAlias = Union[bool, str, "os.PathLike[str]", Mapping[str, "str | os.PathLike[str]"]]
"""False for no TLS; True for TLS with the usual root certificates; the path of a PEM file of root certificates; or a
dict with paths of PEM files: `root_certificates`, `private_key`, `certificate_chain`."""

DEFAULT_RETRIES: Final = 2
# `mlcls serve` closes some APIs with it (`--http-restricted-api`, `--grpc-restricted-protocol`).
ADMIN_KEY_HEADER: Final = "mlcls-admin-key"

_SSL_KEYS: Final = ("root_certificates", "private_key", "certificate_chain")

# Both gRPC and HTTP take these characters in the name of a header.
_HEADER_NAME: Final = re.compile(r"[0-9a-z_.-]+")
_HEADER_VALUE: Final = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?")
# Headers that the client libraries set themselves.
_OWN_HEADERS: Final = frozenset(
    {
        "accept-encoding",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "host",
        "inference-header-content-length",
        "te",
        "transfer-encoding",
    }
)


@dataclass(frozen=True)
class Endpoint:
    """Where a request goes, with the names for its error messages.

    Attributes:
        url: `host:port`.
        protocol: `grpc` or `http`.
        model_name: The ensemble; empty for calls that are about the server itself.
        timeout_s: Time limit of one request with its retries, in seconds.
    """

    url: str
    protocol: str
    model_name: str
    timeout_s: float

    @property
    def server(self) -> str:
        """The server, for error messages."""
        return f"server at {self.url} ({self.protocol})"

    @property
    def subject(self) -> str:
        """The subject of the request, for error messages."""
        return f"model {self.model_name!r}" if self.model_name else "the server's state"


@dataclass(frozen=True)
class TlsFiles:
    """Paths of the PEM files of a TLS connection.

    Attributes:
        root_certificates: Root certificates to trust; None for the usual ones.
        private_key: Key of this client, for a server that verifies its clients.
        certificate_chain: Certificates of this client.
    """

    root_certificates: str | None = None
    private_key: str | None = None
    certificate_chain: str | None = None


@dataclass(frozen=True)
class ConnectionOptions:
    """The connection options of `create_model`.

    Attributes:
        tls: PEM files; None for a connection that is not encrypted.
        headers: Sent with every request; names in lowercase.
        retries: How often to retry a request if a retry is safe.
        admin_key: Sent with calls of the APIs that `mlcls serve` closes.
        shared_memory: Whether images go through memory that client and server share.
    """

    tls: TlsFiles | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    retries: int = DEFAULT_RETRIES
    admin_key: str | None = field(default=None, repr=False)
    shared_memory: bool = False


def read_connection_options(
    ssl: Ssl = False,
    headers: Mapping[str, str] | None = None,
    api_key: str | None = None,
    retries: int = DEFAULT_RETRIES,
    admin_key: str | None = None,
    shared_memory: bool = False,
) -> ConnectionOptions:
    """Check the connection arguments of `create_model`.

    Raises:
        InvalidRequestError: An argument is not as described there, or a PEM file cannot be read.
    """
    if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
        raise InvalidRequestError(f"Expected retries to be 0 or more, got {retries!r}.")
    if not isinstance(shared_memory, bool):
        raise InvalidRequestError(f"Expected shared_memory to be True or False, got {shared_memory!r}.")
    _check_key("admin_key", admin_key)
    return ConnectionOptions(_read_ssl(ssl), _read_headers(headers, api_key), retries, admin_key, shared_memory)


def _read_ssl(ssl: Ssl) -> TlsFiles | None:
    if isinstance(ssl, bool):
        return TlsFiles() if ssl else None
    given: Mapping[Any, Any]
    if isinstance(ssl, str | os.PathLike):
        given = {"root_certificates": ssl}
    elif isinstance(ssl, Mapping):
        given = ssl
    else:
        raise InvalidRequestError(f"Expected ssl to be a bool, a path or a dict, got {type(ssl).__name__}.")
    unknown = [key for key in given if key not in _SSL_KEYS]
    if unknown:
        raise InvalidRequestError(f"Expected ssl to have only keys of {_SSL_KEYS}, got {unknown}.")
    paths = {key: _readable_path(key, path) for key, path in given.items() if path is not None}
    if ("private_key" in paths) != ("certificate_chain" in paths):
        raise InvalidRequestError("Expected ssl to have both private_key and certificate_chain or neither, got one.")
    files = TlsFiles(**paths)
    _check_pem(files)
    return files


def _check_pem(files: TlsFiles) -> None:
    """Read the files as TLS will; gRPC would only fail to connect again and again without a reason."""
    tls: Any = importlib.import_module("ssl")
    context = tls.SSLContext(tls.PROTOCOL_TLS_CLIENT)
    try:
        if files.root_certificates is not None:
            context.load_verify_locations(files.root_certificates)
        if files.certificate_chain is not None:
            # Otherwise, OpenSSL would ask for the password of an encrypted key on the terminal.
            context.load_cert_chain(files.certificate_chain, files.private_key, password=lambda: b"")
    except OSError as error:  # ssl.SSLError is one
        raise InvalidRequestError(
            f"Expected ssl to name PEM files of certificates and of a key without a password, got {files}: {error}."
        ) from error


def _readable_path(key: str, path: Any) -> str:
    try:
        with Path(path).open("rb"):
            return str(path)
    except (OSError, TypeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidRequestError(
            f"Expected a PEM file as {key} of ssl, but cannot read {path!r}: {reason}."
        ) from error


def _read_headers(headers: Mapping[str, str] | None, api_key: str | None) -> dict[str, str]:
    if headers is not None and not isinstance(headers, Mapping):
        raise InvalidRequestError(f"Expected headers to be a dict from name to value, got {type(headers).__name__}.")
    read: dict[str, str] = {}
    for given, value in (headers or {}).items():
        name = given.lower() if isinstance(given, str) else ""
        if not _HEADER_NAME.fullmatch(name) or name.endswith("-bin") or name.startswith("grpc-"):
            raise InvalidRequestError(
                "Expected the name of a header to have only letters, digits, '-', '_' and '.', not to begin with "
                f"'grpc-' and not to end in '-bin', got {given!r}."
            )
        if name in _OWN_HEADERS:
            raise InvalidRequestError(f"The client sets header {given!r} itself; leave it out.")
        if name in read:
            raise InvalidRequestError(f"Expected each header once, got {given!r} twice.")
        # The value may be a secret, so no message contains it.
        if not isinstance(value, str) or not _HEADER_VALUE.fullmatch(value):
            raise InvalidRequestError(
                f"Expected the value of header {given!r} to be printable ASCII text without a space at either end."
            )
        read[name] = value
    _check_key("api_key", api_key)
    if api_key is not None:
        if "authorization" in read:
            raise InvalidRequestError("Expected either api_key or a header 'authorization', got both.")
        read["authorization"] = f"Bearer {api_key}"
    return read


def _check_key(name: str, key: object) -> None:
    if key is not None and (not isinstance(key, str) or not _HEADER_VALUE.fullmatch(key)):
        raise InvalidRequestError(
            f"Expected {name} to be printable ASCII text without a space or line break at either end."
        )


def make_ssl_context(files: TlsFiles) -> Any:
    """Return the `ssl.SSLContext` of a connection."""
    tls: Any = importlib.import_module("ssl")
    context = tls.create_default_context(cafile=files.root_certificates)
    if files.certificate_chain is not None:
        context.load_cert_chain(files.certificate_chain, files.private_key)
    return context


def is_loopback(url: str) -> bool:
    """Return whether a `host:port` names this machine."""
    host = url.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
