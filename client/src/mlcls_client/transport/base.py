"""How requests travel: what `AsyncModel` needs of a connection, and the choice of one.

A test, or a program with a transport of its own, gives `AsyncModel` any object that has these methods. All calls of a
transport come from one event loop.
"""

import math
import os
from collections.abc import Sequence
from typing import Final, Literal, Protocol

from mlcls_client.contract import Answer
from mlcls_client.errors import InvalidRequestError
from mlcls_client.transport.connection import ConnectionOptions
from mlcls_client.transport.error_mapping import Endpoint
from mlcls_client.transport.request_context import NO_CONTEXT, RequestContext
from mlcls_client.transport.triton import GrpcTransport, HttpTransport, TritonTransport

ProtocolName = Literal["grpc", "http"]

DEFAULT_URLS: Final[dict[str, str]] = {"grpc": "localhost:8001", "http": "localhost:8000"}
DEFAULT_TIMEOUT_S: Final = 30.0
URL_VARIABLE: Final = "MLCLS_URL"

_NO_OPTIONS: Final = ConnectionOptions()


class Transport(Protocol):
    """What `AsyncModel` needs of a connection to one ensemble on one server."""

    @property
    def endpoint(self) -> Endpoint:
        """Address, protocol, model and time limit."""
        ...

    async def infer(
        self, encoded_images: Sequence[bytes], threshold_json: str | None, context: RequestContext = NO_CONTEXT
    ) -> list[Answer]:
        """Send one request and return one answer per image, in order; cancelling cancels the request.

        Args:
            encoded_images: N image files, byte for byte; N is at most `max_batch_size()`.
            threshold_json: JSON text of the request parameter `threshold`; None for the model's own threshold.
            context: Id and trace of the request.

        Raises:
            InvalidRequestError: The server refuses the request, or no image in it is good.
            MlclsClientError: Any other of the tree in `mlcls_client.errors`.
        """
        ...

    async def is_ready(self) -> bool:
        """Tell whether the model can answer now.

        Raises:
            ServerUnavailableError: Nothing answers at the address.
        """
        ...

    async def max_batch_size(self) -> int | None:
        """Return how many images one request may hold; None where the server keeps its configuration to itself.

        Servers in production close the model-configuration API (`--grpc-restricted-protocol`,
        `--http-restricted-api`).
        """
        ...

    async def close(self) -> None:
        """Close the connection; a second call does nothing."""
        ...


def open_transport(
    model_name: str, url: str | None, protocol: str, timeout_s: float, options: ConnectionOptions = _NO_OPTIONS
) -> TritonTransport:
    """Make the transport of a protocol; nothing is sent yet.

    Args:
        model_name: The ensemble.
        url: `host:port`; None for the environment variable MLCLS_URL, or the protocol's usual port on this machine.
        protocol: `grpc` or `http`.
        timeout_s: Time limit of one request with its retries, seconds.
        options: TLS, headers, retries, shared memory.

    Raises:
        InvalidRequestError: An unknown protocol, an address with a scheme, a time limit that is not above 0, or a PEM
            file that holds something else.
    """
    if not model_name or not isinstance(model_name, str):
        raise InvalidRequestError(f"expected the name of a model, such as 'PP-LCNet_x1_0_ML', got {model_name!r}")
    return _open_transport(model_name, url, protocol, timeout_s, options)


def open_server_transport(
    url: str | None, protocol: str, timeout_s: float, options: ConnectionOptions = _NO_OPTIONS
) -> TritonTransport:
    """Make a transport for calls that are about the server itself; see `open_transport`."""
    return _open_transport("", url, protocol, timeout_s, options)


def _open_transport(
    model_name: str, url: str | None, protocol: str, timeout_s: float, options: ConnectionOptions
) -> TritonTransport:
    if protocol not in DEFAULT_URLS:
        raise InvalidRequestError(f"expected protocol 'grpc' or 'http', got {protocol!r}")
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float) or not 0 < timeout_s < math.inf:
        raise InvalidRequestError(f"expected a time limit above 0 s, got {timeout_s!r}")
    if url is None:
        url = os.environ.get(URL_VARIABLE) or DEFAULT_URLS[protocol]
    if "://" in url or ":" not in url:
        raise InvalidRequestError(f"expected an address of the form host:port, without a scheme, got {url!r}")
    endpoint = Endpoint(url=url, protocol=protocol, model_name=model_name, timeout_s=timeout_s)
    return GrpcTransport(endpoint, options) if protocol == "grpc" else HttpTransport(endpoint, options)
