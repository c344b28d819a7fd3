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
from mlcls_client.transport.connection import Connection

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


def is_lost_shared_memory(text: str) -> bool:
    """Return whether the server does not know a region of shared memory, for example after a restart."""
    return "unable to find" in text.lower() and "shared memory region" in text.lower()


def error_from_status(status: str | None, text: str, connection: Connection) -> MlclsClientError:
    """Map an error of the server; the status is gRPC's (`StatusCode.NOT_FOUND`), HTTP's (`404`), or None."""
    server, model, said = connection.server, connection.subject, end_sentence(text)
    kind: type[MlclsClientError] = ServerError
    # A closed API answers 403 over HTTP, and UNAVAILABLE with "This protocol is restricted, expecting header ..." over
    # gRPC (`--http-restricted-api`, `--grpc-restricted-protocol`).
    if status in _FORBIDDEN or "protocol is restricted" in text or "API is restricted" in text:
        message = (
            f"The {server} requires a key for this: {said} Pass the server's MLCLS_ADMIN_KEY as admin_key, or the "
            "header that it names."
        )
    elif status in _UNAVAILABLE or "has no available versions" in text:  # the latter while it is being loaded
        kind = ServerUnavailableError
        message = (
            f"Expected {model} from the {server}, which is not ready for it: {said} "
            "Check the address and the protocol, that the server runs, and that the model is loaded."
        )
    elif "Stub process" in text and "is not healthy" in text:  # a step was lost
        kind = ServerUnavailableError
        message = (
            f"Expected {model} from the {server}, but one of its steps was killed or hangs: {said} "
            "`mlcls serve --supervise` restarts by itself; look at the server's log."
        )
    elif status in _NOT_FOUND or ("unknown model" in text and "is not found" in text):
        kind = ModelNotFoundError
        message = f"The {server} has no {model}: {said} Compare the name with the models that the server has loaded."
    elif status in _INVALID:
        kind, message = InvalidRequestError, f"The {server} rejected the request for {model}: {said}"
    elif status in _DEADLINE:
        kind, message = DeadlineExceededError, _deadline_message(connection)
    elif status in _NOT_IMPLEMENTED:
        kind = ProtocolError
        message = f"Expected a Triton inference server, but the {server} does not know this call: {said}"
    else:
        message = f"The {server} failed on a request for {model} ({status or 'no status'}): {said}"
    return kind(message, server_text=text)


@contextmanager
def mapped_errors(connection: Connection) -> Iterator[None]:
    """Map errors of the client libraries that the block raises to errors of this package.

    Put only calls of the client libraries into the block.
    """
    try:
        yield
    except MlclsClientError:
        raise
    except Exception as error:
        raise _error_from_exception(error, connection) from error


def _error_from_exception(error: Any, connection: Connection) -> MlclsClientError:
    # By name: tritonclient has no type information and is imported only when it is needed.
    if isinstance(error, importlib.import_module("tritonclient.utils").InferenceServerException):
        return error_from_status(error.status(), error.message() or "no text", connection)
    if isinstance(error, TimeoutError | asyncio.TimeoutError):  # two classes before Python 3.11
        return DeadlineExceededError(_deadline_message(connection))
    if isinstance(error, OSError):
        return ServerUnavailableError(
            f"Cannot reach the {connection.server}: {end_sentence(str(error))} Check the address and the protocol, and "
            "that the server runs."
        )
    if type(error).__name__ in _LOST_CONNECTION_ERRORS:
        said = end_sentence(str(error))
        return ServerUnavailableError(
            f"The connection to the {connection.server} was lost: {said} Check that the server runs."
        )
    # Below tritonclient, a malformed answer ends in ValueError, KeyError, struct.error, ClientResponseError or
    # RapidJSON's own errors, which have no base class in common.
    return ProtocolError(
        f"Expected an answer of a Triton inference server from {connection.url} over {connection.protocol}, "
        f"got something else ({type(error).__name__}: {error}). Check that the port is the one of this protocol."
    )


def _deadline_message(connection: Connection) -> str:
    return (
        f"Expected an answer for {connection.subject} from the {connection.server} within {connection.timeout_s:g} s, "
        "got none. Raise the time limit, send smaller batches, or look at the server's load."
    )
