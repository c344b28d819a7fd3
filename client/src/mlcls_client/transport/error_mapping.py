"""Errors of tritonclient, gRPC, HTTP and the operating system, mapped to `mlcls_client.errors`."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from mlcls_client.base.text import end_sentence
from mlcls_client.errors import (
    DeadlineExceededError,
    InvalidRequestError,
    MlclsClientError,
    ModelNotFoundError,
    ProtocolError,
    ServerError,
    ServerUnavailableError,
)
from mlcls_client.transport.connection import Endpoint

# What InferenceServerException.status() returns: the gRPC code's name, or the HTTP status code as text.
_UNAVAILABLE: Final = {"StatusCode.UNAVAILABLE", "502", "503"}
_NOT_FOUND: Final = {"StatusCode.NOT_FOUND", "404"}
_INVALID: Final = {
    "StatusCode.INVALID_ARGUMENT",
    "StatusCode.RESOURCE_EXHAUSTED",
    "StatusCode.OUT_OF_RANGE",
    "400",
    "413",
}
_DEADLINE: Final = {"StatusCode.DEADLINE_EXCEEDED", "408", "504"}
_NOT_IMPLEMENTED: Final = {"StatusCode.UNIMPLEMENTED", "405", "501"}
_FORBIDDEN: Final = {"StatusCode.PERMISSION_DENIED", "StatusCode.UNAUTHENTICATED", "401", "403"}

# aiohttp's, by name, so that gRPC does not import it. Those that derive from OSError are not here.
_LOST_CONNECTION_ERRORS: Final = {"ServerDisconnectedError", "ClientPayloadError", "ClientConnectionError"}
_SHARED_MEMORY_TEXT: Final = "shared memory region"


def is_closed_api(status: str | None, text: str) -> bool:
    """Return whether the server refused because this API requires a key.

    Triton then answers 403 over HTTP, and UNAVAILABLE with "This protocol is restricted, expecting header ..." over
    gRPC (`--http-restricted-api`, `--grpc-restricted-protocol`).
    """
    return status in _FORBIDDEN or "protocol is restricted" in text or "API is restricted" in text


def is_lost_shared_memory(text: str) -> bool:
    """Return whether the server does not know a region of shared memory, for example after a restart."""
    return "unable to find" in text.lower() and _SHARED_MEMORY_TEXT in text.lower()


def is_shared_memory_in_use(text: str) -> bool:
    """Return whether the server keeps a region of shared memory because a request still uses it."""
    return "cannot unregister" in text.lower() and _SHARED_MEMORY_TEXT in text.lower()


def triton_status(error: Any) -> tuple[str | None, str]:
    """Return the status and the text of tritonclient's InferenceServerException."""
    return error.status(), error.message() or "no text"


def error_from_status(status: str | None, text: str, endpoint: Endpoint) -> MlclsClientError:
    """Map an error status of the server to an error of this package, with the server's text.

    Args:
        status: The gRPC code (`StatusCode.NOT_FOUND`) or HTTP status code (`404`); None if the library gave none.
        text: The server's text.
        endpoint: Where the request went.
    """
    server, model, said = endpoint.server, endpoint.subject, end_sentence(text)
    if is_closed_api(status, text):
        return ServerError(
            f"The {server} requires a key for this: {said} Pass the server's MLCLS_ADMIN_KEY as admin_key, or the "
            "header that it names.",
            server_text=text,
        )
    if status in _UNAVAILABLE or "has no available versions" in text:  # the latter while it is being loaded
        return ServerUnavailableError(
            f"Expected {model} from the {server}, which is not ready for it: {said} "
            "Check the address and the protocol, that the server runs, and that the model is loaded.",
            server_text=text,
        )
    if "Stub process" in text and "is not healthy" in text:  # a step was lost
        return ServerUnavailableError(
            f"Expected {model} from the {server}, but one of its steps was killed or hangs: {said} "
            "`mlcls serve --supervise` restarts by itself; look at the server's log.",
            server_text=text,
        )
    if status in _NOT_FOUND or ("unknown model" in text and "is not found" in text):
        return ModelNotFoundError(
            f"The {server} has no {model}: {said} Compare the name with the models that the server has loaded.",
            server_text=text,
        )
    if status in _INVALID:
        return InvalidRequestError(f"The {server} rejected the request for {model}: {said}", server_text=text)
    if status in _DEADLINE:
        return DeadlineExceededError(_deadline_message(server, endpoint), server_text=text)
    if status in _NOT_IMPLEMENTED:
        return ProtocolError(
            f"Expected a Triton inference server, but the {server} does not know this call: {said}", server_text=text
        )
    return ServerError(
        f"The {server} failed on a request for {model} ({status or 'no status'}): {said}", server_text=text
    )


@contextmanager
def mapped_errors(endpoint: Endpoint) -> Iterator[None]:
    """Map errors of the client libraries that the block raises to errors of this package.

    Put only calls of the client libraries into the block.
    """
    try:
        yield
    except MlclsClientError:
        raise
    except Exception as error:
        raise _error_from_exception(error, endpoint) from error


def _error_from_exception(error: Exception, endpoint: Endpoint) -> MlclsClientError:
    # By name: tritonclient has no type information and is imported only when it is needed.
    triton_error: type[Exception] = importlib.import_module("tritonclient.utils").InferenceServerException
    server = endpoint.server
    if isinstance(error, triton_error):
        status, text = triton_status(error)
        return error_from_status(status, text, endpoint)
    if isinstance(error, TimeoutError | asyncio.TimeoutError):  # two classes before Python 3.11
        return DeadlineExceededError(_deadline_message(server, endpoint))
    if isinstance(error, OSError):
        return ServerUnavailableError(
            f"Cannot reach the {server}: {end_sentence(str(error))} Check the address and the protocol, and that the "
            "server runs."
        )
    if type(error).__name__ in _LOST_CONNECTION_ERRORS:
        return ServerUnavailableError(
            f"The connection to the {server} was lost: {end_sentence(str(error))} Check that the server runs."
        )
    # Below tritonclient, a malformed answer ends in ValueError, KeyError, struct.error, ClientResponseError or
    # RapidJSON's own errors, which have no base class in common.
    return ProtocolError(
        f"Expected an answer of a Triton inference server from {endpoint.url} over {endpoint.protocol}, "
        f"got something else ({type(error).__name__}: {error}). Check that the port is the one of this protocol."
    )


def _deadline_message(server: str, endpoint: Endpoint) -> str:
    return (
        f"Expected an answer for {endpoint.subject} from the {server} within {endpoint.timeout_s:g} s, "
        "got none. Raise the time limit, send smaller batches, or look at the server's load."
    )
