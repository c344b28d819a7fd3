"""How to connect: address, TLS, headers, keys, retries. No `repr` and no error message contains a secret."""

from __future__ import annotations

import ipaddress
import logging
import math
import os
import re
import ssl as tls
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias, Union

from mlcls_client.errors import InvalidRequestError

Ssl: TypeAlias = Union[bool, str, "os.PathLike[str]", Mapping[str, "str | os.PathLike[str]"]]
"""False for no TLS; True for TLS with the usual root certificates; the path of a PEM file of root certificates; or a
dict with paths of PEM files: `root_certificates`, `private_key`, `certificate_chain`."""

DEFAULT_URLS: Final[dict[str, str]] = {"grpc": "localhost:8001", "http": "localhost:8000"}
URL_VARIABLE: Final = "MLCLS_URL"
DEFAULT_TIMEOUT_S: Final = 30.0
DEFAULT_RETRIES: Final = 2
# `mlcls serve` closes some APIs with it (`--http-restricted-api`, `--grpc-restricted-protocol`).
ADMIN_KEY_HEADER: Final = "mlcls-admin-key"
# How gRPC marks a name that stands for as many servers as it has addresses.
_DNS_PREFIX: Final = "dns:///"

# Arguments of PaddleX's `create_model` about what the server decides.
PADDLEX_OPTIONS: Final = frozenset(
    {"device", "engine", "engine_config", "pp_option", "use_hpip", "hpi_config", "genai_config"}
)

_SSL_KEYS: Final = ("root_certificates", "private_key", "certificate_chain")

# Both gRPC and HTTP take these characters in the name of a header.
_HEADER_NAME: Final = re.compile(r"[0-9a-z_.-]+")
_HEADER_VALUE: Final = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?")
# Headers that the client libraries set themselves.
_OWN_HEADER: Final = re.compile(
    "accept-encoding|connection|content-(encoding|length|type)|host|inference-header-content-length|te|transfer-encoding"
)

logger = logging.getLogger("mlcls_client")


@dataclass(frozen=True)
class Connection:
    """A server and how to ask it.

    Attributes:
        url: `host:port`; for several servers `dns:///NAME:PORT` or a list `IP:PORT,IP:PORT`.
        protocol: `grpc` or `http`.
        model_name: The ensemble; empty for calls that are about the server itself.
        timeout_s: Time limit of one request with its retries, in seconds.
        tls: Paths of PEM files by the keys of `Ssl`; None for a connection that is not encrypted.
        headers: Sent with every request; names in lowercase.
        retries: How often to retry a request if a retry is safe.
        admin_key: Sent with calls of the APIs that `mlcls serve` closes.
        shared_memory: Whether images go through memory that client and server share.
    """

    url: str
    protocol: str = "grpc"
    model_name: str = ""
    timeout_s: float = DEFAULT_TIMEOUT_S
    tls: Mapping[str, str] | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    retries: int = DEFAULT_RETRIES
    admin_key: str | None = field(default=None, repr=False)
    shared_memory: bool = False

    @property
    def server(self) -> str:
        """The server, for error messages."""
        return f"server at {self.url} ({self.protocol})"

    @property
    def has_replicas(self) -> bool:
        """Whether the address stands for several servers, which take turns."""
        return self.url.startswith(_DNS_PREFIX) or "," in self.url

    @property
    def grpc_target(self) -> str:
        """The address as gRPC takes it."""
        if "," not in self.url:
            return self.url
        return f"ipv{_read_ip(self.url.partition(',')[0]).version}:{self.url}"

    @property
    def is_local(self) -> bool:
        """Whether it is of this machine only."""
        addresses = self.url.removeprefix(_DNS_PREFIX).split(",")
        return all(_is_loopback(address) for address in addresses)

    @property
    def subject(self) -> str:
        """The subject of the request, for error messages."""
        return f"model {self.model_name!r}" if self.model_name else "the server's state"


def read_connection(
    model_name: str | None,
    url: str | None,
    protocol: str,
    timeout_s: float,
    ssl: Ssl = False,
    headers: Mapping[str, str] | None = None,
    api_key: str | None = None,
    retries: int = DEFAULT_RETRIES,
    admin_key: str | None = None,
    shared_memory: bool = False,
    model_dir: str | os.PathLike[str] | None = None,
    paddlex_options: Mapping[str, object] = {},
) -> Connection:
    """Check the arguments of `create_model`; without a model for calls about the server itself.

    Raises:
        InvalidRequestError: An argument is not as described there, or a PEM file cannot be read.
        TypeError: PaddleX has no such option.
    """
    for name, value in paddlex_options.items():
        if name not in PADDLEX_OPTIONS:
            raise TypeError(f"create_model got an unexpected keyword argument {name!r}.")
        if value is not None and value is not False:
            logger.warning("%s=%r has no effect: the server's configuration decides it.", name, value)
    if model_name is not None and (not model_name or not isinstance(model_name, str)):
        raise InvalidRequestError(f"Expected the name of a model, such as 'PP-LCNet_x1_0_ML', got {model_name!r}.")
    if protocol not in DEFAULT_URLS:
        raise InvalidRequestError(f"Expected protocol 'grpc' or 'http', got {protocol!r}.")
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float) or not 0 < timeout_s < math.inf:
        raise InvalidRequestError(f"Expected a time limit above 0 s, got {timeout_s!r}.")
    if url is None:
        url = os.environ.get(URL_VARIABLE) or DEFAULT_URLS[protocol]
    if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
        raise InvalidRequestError(f"Expected retries to be 0 or more, got {retries!r}.")
    if not isinstance(shared_memory, bool):
        raise InvalidRequestError(f"Expected shared_memory to be True or False, got {shared_memory!r}.")
    _check_url(url, protocol, shared_memory)
    _check_key("admin_key", admin_key)
    if model_dir is not None:  # a model other than the one in that folder would answer
        raise InvalidRequestError(
            f"Expected no model_dir, got {os.fspath(model_dir)!r}: the model is on the server. Import it there: "
            "mlcls import DIR --name NAME. Then pass that name as model_name."
        )
    files, all_headers = _read_ssl(ssl), _read_headers(headers, api_key)
    return Connection(url, protocol, model_name or "", timeout_s, files, all_headers, retries, admin_key, shared_memory)


def _check_url(url: str, protocol: str, shared_memory: bool) -> None:
    name = url.removeprefix(_DNS_PREFIX)
    if "://" in name or ":" not in name:
        raise InvalidRequestError(f"Expected an address of the form host:port, without a scheme, got {url!r}.")
    if name == url and "," not in url:
        return
    if protocol != "grpc" or shared_memory:
        what = "with shared memory" if shared_memory else "over HTTP"
        raise InvalidRequestError(f"Expected one server of the form host:port {what}, got {url!r}.")
    if "," in name:
        try:
            versions = {_read_ip(address).version for address in url.split(",")}
        except ValueError:
            versions = set()
        if len(versions) != 1:
            raise InvalidRequestError(
                "Expected a list of IP addresses of one kind, such as 10.0.0.1:8001,10.0.0.2:8001, or a name such as "
                f"{_DNS_PREFIX}triton:8001, got {url!r}."
            )


def _read_ssl(ssl: Ssl) -> dict[str, str] | None:
    if isinstance(ssl, bool):
        return {} if ssl else None
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
    files = {key: str(path) for key, path in given.items() if path is not None}
    if ("private_key" in files) != ("certificate_chain" in files):
        raise InvalidRequestError("Expected ssl to have both private_key and certificate_chain or neither, got one.")
    try:
        # Read now as TLS will; gRPC would only fail to connect again and again without a reason.
        make_ssl_context(files)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise InvalidRequestError(
            f"Expected ssl to name PEM files of certificates and of a key without a password, got {files}: {error}."
        ) from error
    return files


def make_ssl_context(files: Mapping[str, str]) -> tls.SSLContext:
    """Return the context of a connection; an OSError if a file is not as expected."""
    context = tls.create_default_context(cafile=files.get("root_certificates"))
    if "certificate_chain" in files:
        # Otherwise, OpenSSL would ask for the password of an encrypted key on the terminal.
        context.load_cert_chain(files["certificate_chain"], files["private_key"], password=lambda: b"")
    return context


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
        if _OWN_HEADER.fullmatch(name):
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


def _read_ip(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Return the host of an `IP:port`; a ValueError if it is none or there is no port."""
    host, _, port = address.rpartition(":")
    int(port)
    return ipaddress.ip_address(host.strip("[]"))


def _is_loopback(address: str) -> bool:
    try:
        return address.rpartition(":")[0] == "localhost" or _read_ip(address).is_loopback
    except ValueError:
        return False
