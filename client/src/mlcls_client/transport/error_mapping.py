"""Errors of tritonclient, gRPC, HTTP and the operating system, mapped to `mlcls_client.errors`."""

from __future__ import annotations

import asyncio
import importlib
import re
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

_LATE: Final = (
    "Expected an answer for {model} from the {server} within {timeout_s:g} s, got none. Raise the time limit, send "
    "smaller batches, or look at the server's load."
)
_UNREACHABLE: Final = "Cannot reach the {server}: {said} Check the address and the protocol, and that the server runs."
_LOST: Final = "The connection to the {server} was lost: {said} Check that the server runs."
# What InferenceServerException.status() returns (the gRPC code's name, or the HTTP status code as text), or a pattern
# of the server's text, empty for none. The first rule that matches counts.
_RULES: Final[tuple[tuple[type[MlclsClientError], set[str], str, str], ...]] = (
    # A closed API (`--http-restricted-api`, `--grpc-restricted-protocol`) is UNAVAILABLE over gRPC.
    (
        ServerError,
        {"StatusCode.PERMISSION_DENIED", "StatusCode.UNAUTHENTICATED", "401", "403"},
        "(protocol|API) is restricted",
        "The {server} requires a key for this: {said} Pass its MLCLS_ADMIN_KEY as admin_key, or the header it names.",
    ),
    # gRPC's own texts, which are UNAVAILABLE as well.
    (ServerUnavailableError, set(), "^(failed to connect to all|errors resolving|DNS resolution failed)", _UNREACHABLE),
    # A server that ends cancels what it has not answered.
    (
        ServerUnavailableError,
        {"StatusCode.CANCELLED"},
        "^(Socket closed|recvmsg:|Connection reset|Broken pipe)",
        _LOST,
    ),
    (
        ServerUnavailableError,
        {"StatusCode.UNAVAILABLE", "502", "503"},
        "has no available versions",  # while it is being loaded
        (
            "Expected {model} from the {server}, which is not ready for it: {said} Check the address and the protocol, "
            "that the server runs, and that the model is loaded."
        ),
    ),
    (
        ServerUnavailableError,
        set(),
        "Stub process.* is not healthy",  # a step was lost
        (
            "Expected {model} from the {server}, but one of its steps was killed or hangs: {said} "
            "`mlcls serve --supervise` restarts by itself; look at the server's log."
        ),
    ),
    (
        ModelNotFoundError,
        {"StatusCode.NOT_FOUND", "404"},
        "unknown model.* is not found",
        "The {server} has no {model}: {said} Compare the name with the models that the server has loaded.",
    ),
    (
        InvalidRequestError,
        {
            "StatusCode.INVALID_ARGUMENT",
            "StatusCode.RESOURCE_EXHAUSTED",
            "StatusCode.OUT_OF_RANGE",
            "400",
            "413",
            "422",
        },
        "",
        "The {server} rejected the request for {model}: {said}",
    ),
    (DeadlineExceededError, {"StatusCode.DEADLINE_EXCEEDED", "408", "504"}, "", _LATE),
    (
        ProtocolError,
        {"StatusCode.UNIMPLEMENTED", "405", "501"},
        "",
        "Expected a Triton inference server, but the {server} does not know this call: {said}",
    ),
    (ServerError, set(), ".", "The {server} failed on a request for {model} ({status}): {said}"),
)

# aiohttp's, by name, so that gRPC does not import it. Those that derive from OSError are not here.
_LOST_CONNECTION_ERRORS: Final = {"ServerDisconnectedError", "ClientPayloadError", "ClientConnectionError"}


def is_lost_shared_memory(text: str) -> bool:
    """Return whether the server does not know a region of shared memory, for example after a restart."""
    return "unable to find" in text.lower() and "shared memory region" in text.lower()


def error_from_status(status: str | None, text: str, connection: Connection) -> MlclsClientError:
    """Map an error of the server; the status is gRPC's (`StatusCode.NOT_FOUND`), HTTP's (`404`), or None."""
    kind, message = next(
        (kind, message)
        for kind, statuses, pattern, message in _RULES
        if status in statuses or (pattern and re.search(pattern, text, re.DOTALL))
    )
    said = end_sentence(text)
    return kind(_fill(message, connection, said=said, status=status or "no status"), server_text=text)


def _fill(message: str, connection: Connection, **values: str) -> str:
    server, model, timeout_s = connection.server, connection.subject, connection.timeout_s
    return message.format(server=server, model=model, timeout_s=timeout_s, **values)


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
        return DeadlineExceededError(_fill(_LATE, connection))
    if isinstance(error, OSError):
        # aiohttp tells the TLS settings, also of a connection without TLS.
        said = end_sentence(re.sub(r" ssl:.* (?=\[)", " ", str(error)))
        return ServerUnavailableError(_fill(_UNREACHABLE, connection, said=said))
    if type(error).__name__ in _LOST_CONNECTION_ERRORS:
        return ServerUnavailableError(_fill(_LOST, connection, said=end_sentence(str(error))))
    # Below tritonclient, a malformed answer ends in ValueError, KeyError, struct.error, ClientResponseError or
    # RapidJSON's own errors, which have no base class in common.
    return ProtocolError(
        f"Expected an answer of a Triton inference server from {connection.url} over {connection.protocol}, "
        f"got something else ({type(error).__name__}: {error}). Check that the port is the one of this protocol."
    )
