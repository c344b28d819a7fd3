"""Every error of tritonclient, gRPC, HTTP and the operating system, mapped to `mlcls_client.errors`."""

import asyncio
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from mlcls_client.errors import (
    DeadlineExceededError,
    InvalidRequestError,
    MlclsClientError,
    ModelNotFoundError,
    ProtocolError,
    ServerError,
    ServerUnavailableError,
)

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

# aiohttp's, by name: the HTTP library is not to be imported for gRPC. Those that it derives from OSError are not here.
_LOST_CONNECTION_ERRORS: Final = {"ServerDisconnectedError", "ClientPayloadError", "ClientConnectionError"}
_SHARED_MEMORY_TEXT: Final = "shared memory region"


@dataclass(frozen=True)
class Endpoint:
    """Whom a request goes to; the names that its error messages carry.

    Attributes:
        url: `host:port`.
        protocol: `grpc` or `http`.
        model_name: The ensemble; empty for calls that are about the server itself.
        timeout_s: Time limit of one request with its retries, seconds.
    """

    url: str
    protocol: str
    model_name: str
    timeout_s: float

    @property
    def server(self) -> str:
        """The server, in the words of an error message."""
        return f"the server at {self.url} ({self.protocol})"

    @property
    def subject(self) -> str:
        """What is asked for, in the words of an error message."""
        return f"model {self.model_name!r}" if self.model_name else "the server's state"


def is_closed_api(status: str | None, text: str) -> bool:
    """Tell whether the server refused because this protocol is restricted to requests with a key.

    Triton answers that with 403 over HTTP, and over gRPC with UNAVAILABLE and "This protocol is restricted,
    expecting header ..." (`--http-restricted-api`, `--grpc-restricted-protocol`).
    """
    return status in _FORBIDDEN or "protocol is restricted" in text or "API is restricted" in text


def is_lost_shared_memory(text: str) -> bool:
    """Tell whether the server does not know a region of shared memory; one that was restarted has forgotten all."""
    return "unable to find" in text.lower() and _SHARED_MEMORY_TEXT in text.lower()


def is_shared_memory_in_use(text: str) -> bool:
    """Tell whether the server keeps a region of shared memory because a request still uses it."""
    return "cannot unregister" in text.lower() and _SHARED_MEMORY_TEXT in text.lower()


def triton_status(error: Any) -> tuple[str | None, str]:
    """Return the status and the text of tritonclient's InferenceServerException."""
    return error.status(), error.message() or "no text"


def error_from_status(status: str | None, text: str, endpoint: Endpoint) -> MlclsClientError:
    """Map a refusal of the server to an error of this package; the server's text is kept.

    Args:
        status: GRPC code (`StatusCode.NOT_FOUND`) or HTTP status code (`404`); None where the library gave none.
        text: What the server said.
        endpoint: Whom the request went to.
    """
    where, model = endpoint.server, endpoint.subject
    if is_closed_api(status, text):
        return ServerError(
            f"{where} wants a key for this: {text}. Give the key of `mlcls serve` (MLCLS_ADMIN_KEY) as admin_key, or "
            "the header that it names.",
            server_text=text,
        )
    if status in _UNAVAILABLE or "has no available versions" in text:  # so a server says that is still loading it
        return ServerUnavailableError(
            f"expected {model} from {where}, which is not ready for it: {text}. "
            "Check the address and the protocol, that the server runs, and that the model is loaded.",
            server_text=text,
        )
    if "Stub process" in text and "is not healthy" in text:  # so a server says that lost a step, and is started again
        return ServerUnavailableError(
            f"expected {model} from {where}, where a step of it was killed or hangs: {text}. `mlcls serve --supervise` "
            "starts again by itself; look at the server's log.",
            server_text=text,
        )
    if status in _NOT_FOUND or ("unknown model" in text and "is not found" in text):
        return ModelNotFoundError(
            f"{where} has no {model}: {text}. Compare the name with the models that the server has loaded.",
            server_text=text,
        )
    if status in _INVALID:
        return InvalidRequestError(f"{where} refused the request for {model}: {text}", server_text=text)
    if status in _DEADLINE:
        return DeadlineExceededError(_deadline_message(where, endpoint), server_text=text)
    if status in _NOT_IMPLEMENTED:
        return ProtocolError(
            f"expected a Triton inference server, but {where} does not know this call: {text}", server_text=text
        )
    return ServerError(f"{where} failed on a request for {model}: {text} ({status or 'no status'})", server_text=text)


@contextmanager
def mapped_errors(endpoint: Endpoint) -> Iterator[None]:
    """Raise what the client libraries raise inside the block as an error of this package.

    Only calls of the client libraries belong into the block.
    """
    try:
        yield
    except MlclsClientError:
        raise
    except Exception as error:
        raise _error_from_exception(error, endpoint) from error


def _error_from_exception(error: Exception, endpoint: Endpoint) -> MlclsClientError:
    # By name: tritonclient has no type information, and is not to be imported before it is needed.
    triton_error: type[Exception] = importlib.import_module("tritonclient.utils").InferenceServerException
    where = endpoint.server
    if isinstance(error, triton_error):
        status, text = triton_status(error)
        return error_from_status(status, text, endpoint)
    if isinstance(error, TimeoutError | asyncio.TimeoutError):  # two classes before Python 3.11
        return DeadlineExceededError(_deadline_message(where, endpoint))
    if isinstance(error, OSError):
        return ServerUnavailableError(
            f"cannot reach {where}: {error}. Check the address and the protocol, and that the server runs."
        )
    if type(error).__name__ in _LOST_CONNECTION_ERRORS:
        return ServerUnavailableError(f"the connection to {where} was lost: {error}. Check that the server runs.")
    # Below tritonclient, a malformed answer ends in ValueError, KeyError, struct.error, ClientResponseError or
    # RapidJSON's own errors, which have no base class in common.
    return ProtocolError(
        f"expected an answer of a Triton inference server from {endpoint.url} over {endpoint.protocol}, "
        f"got something else ({type(error).__name__}: {error}). Check that the port is the one of this protocol."
    )


def _deadline_message(where: str, endpoint: Endpoint) -> str:
    return (
        f"expected an answer for {endpoint.subject} from {where} within {endpoint.timeout_s:g} s, "
        "none came. Raise the time limit, send smaller batches, or look at the server's load."
    )
