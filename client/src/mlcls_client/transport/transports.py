"""Connections to a server: the interface `Transport`, and gRPC and HTTP on tritonclient's asyncio clients.

`AsyncModel` accepts any object with the methods of `Transport`, for example in a test. All calls of a transport come
from one event loop.
"""

from __future__ import annotations

import abc
import asyncio
import importlib
import math
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from typing import Any, Final, Protocol, TypeVar

from mlcls_client.base.text import end_sentence
from mlcls_client.errors import InvalidRequestError, ModelNotFoundError, ProtocolError, ServerUnavailableError
from mlcls_client.transport.connection import (
    ADMIN_KEY_HEADER,
    ConnectionOptions,
    Endpoint,
    is_loopback,
    make_ssl_context,
)
from mlcls_client.transport.contract import IMAGE, RESULT, STATUS, THRESHOLD_PARAMETER, Answer, read_answers
from mlcls_client.transport.error_mapping import (
    error_from_status,
    is_closed_api,
    is_lost_shared_memory,
    mapped_errors,
    triton_status,
)
from mlcls_client.transport.request import NO_CONTEXT, RequestContext, call_with_retries
from mlcls_client.transport.shared_memory import ServerRegion, SharedBlock

DEFAULT_URLS: Final[dict[str, str]] = {"grpc": "localhost:8001", "http": "localhost:8000"}
DEFAULT_TIMEOUT_S: Final = 30.0
URL_VARIABLE: Final = "MLCLS_URL"

_MAX_MESSAGE_BYTES: Final = 2**31 - 1
_MAX_RECONNECT_BACKOFF_MS: Final = 1000
# Triton counts in microseconds, and a day is as good as forever.
_LONGEST_QUEUE_TIMEOUT_S: Final = 86_400.0

_NO_OPTIONS: Final = ConnectionOptions()

Answered = TypeVar("Answered")


class Transport(Protocol):
    """What `AsyncModel` needs from a connection to one ensemble on one server."""

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
            InvalidRequestError: The server rejects the request, or no image in it is good.
            MlclsClientError: Any other error in `mlcls_client.errors`.
        """
        ...

    async def is_ready(self) -> bool:
        """Return whether the model can answer now.

        Raises:
            ServerUnavailableError: Nothing answers at the address.
        """
        ...

    async def max_batch_size(self) -> int | None:
        """Return how many images one request may hold; None if the server does not tell its configuration.

        Servers in production may close the model-configuration API (`--grpc-restricted-protocol`,
        `--http-restricted-api`).
        """
        ...

    async def close(self) -> None:
        """Close the connection; a second call does nothing."""
        ...


class TritonTransport(abc.ABC):
    """The common part of both protocols: tritonclient's two modules have the same names and almost the same calls."""

    def __init__(self, endpoint: Endpoint, options: ConnectionOptions, module_name: str) -> None:
        self.endpoint = endpoint
        self._options = options
        self._module_name = module_name
        self._client: Any = None
        self._closed = False
        self._output_options: dict[str, Any] = {}
        self._region = ServerRegion(self) if options.shared_memory else None

    @abc.abstractmethod
    def _open_client(self, tritonclient: Any) -> Any:
        """Make tritonclient's client, which connects on the first call."""

    @abc.abstractmethod
    async def ask_within(
        self, left_s: float, call: Callable[..., Awaitable[Answered]], *args: Any, admin: bool = False
    ) -> Answered:
        """Await a call of tritonclient with its arguments and the headers, for no longer than `left_s`.

        Args:
            left_s: Time limit, in seconds.
            call: Method of tritonclient's client.
            args: Its arguments.
            admin: Also send the key of the closed APIs.
        """

    @abc.abstractmethod
    def _admin_headers(self) -> dict[str, str]: ...

    async def call(self, method: str, *args: Any, retries: int | None = None, admin: bool = False) -> Any:
        """Make a call of tritonclient's client, with retries; `admin` also sends the key of the closed APIs.

        Raises:
            MlclsClientError: Any error in `mlcls_client.errors`.
        """

        async def attempt(left_s: float) -> Any:
            with mapped_errors(self.endpoint):
                return await self.ask_within(left_s, getattr(self.client, method), *args, admin=admin)

        return await call_with_retries(
            attempt, self._options.retries if retries is None else retries, self.endpoint.timeout_s
        )

    @property
    def client(self) -> Any:
        """The client of tritonclient, opened on the first call, because it belongs to the event loop of that call."""
        if self._client is None:
            # Imported here, because importing tritonclient takes longer than the rest of this package.
            self._tritonclient: Any = importlib.import_module(self._module_name)
            self._client = self._open_client(self._tritonclient)
        return self._client

    def headers(self, admin: bool) -> dict[str, str] | None:
        """Return the headers of one call: a new dict, because tritonclient adds to it."""
        return {**self._options.headers, **(self._admin_headers() if admin else {})} or None

    async def infer(
        self, encoded_images: Sequence[bytes], threshold_json: str | None, context: RequestContext = NO_CONTEXT
    ) -> list[Answer]:
        """See `Transport.infer`."""

        async def attempt(left_s: float) -> tuple[Any, Any]:
            with mapped_errors(self.endpoint):
                try:
                    return await self._infer_once(encoded_images, threshold_json, context, left_s)
                except _triton_error() as error:
                    if isinstance(error_from_status(*triton_status(error), self.endpoint), ModelNotFoundError):
                        await self._check_that_server_is_up(error, left_s)
                    raise

        result, status = await call_with_retries(attempt, self._options.retries, self.endpoint.timeout_s)
        return read_answers(result, status, len(encoded_images))

    async def _check_that_server_is_up(self, error: Any, left_s: float) -> None:
        """Distinguish a server without the model from one that is still loading its models.

        Raises:
            ServerUnavailableError: The server is not ready yet, so a retry may find the model.
        """
        if not await self.ask_within(left_s, self.client.is_server_ready):
            text = triton_status(error)[1]
            raise ServerUnavailableError(
                f"Expected {self.endpoint.subject} from the {self.endpoint.server}, which is not ready yet: "
                f"{end_sentence(text)}",
                server_text=text,
            ) from error

    async def _infer_once(
        self, encoded_images: Sequence[bytes], threshold_json: str | None, context: RequestContext, left_s: float
    ) -> tuple[Any, Any]:
        triton_error = _triton_error()
        if self._region is None:
            return await self._send(encoded_images, None, threshold_json, context, left_s)
        deadline = asyncio.get_running_loop().time() + left_s
        for is_last in (False, True):
            block = await self._region.place(encoded_images, left_s)
            try:
                left_s = max(0.001, deadline - asyncio.get_running_loop().time())
                return await self._send(encoded_images, block, threshold_json, context, left_s)
            except triton_error as error:
                if is_last or block is None or not is_lost_shared_memory(triton_status(error)[1]):
                    raise
                # The server was restarted and no longer knows the region.
                self._region.forget(block)
            finally:
                if block is not None:
                    block.release()
        raise AssertionError("unreachable")

    async def _send(
        self,
        encoded_images: Sequence[bytes],
        block: SharedBlock | None,
        threshold_json: str | None,
        context: RequestContext,
        left_s: float,
    ) -> tuple[Any, Any]:
        client = self.client
        image_input = self._tritonclient.InferInput(IMAGE, [len(encoded_images), 1], "BYTES")
        if block is None:
            image_input.set_data_from_numpy(_to_tensor(encoded_images))
        else:
            image_input.set_shared_memory(block.region_name, block.size_bytes, block.offset)
        outputs = [self._tritonclient.InferRequestedOutput(name, **self._output_options) for name in (RESULT, STATUS)]
        parameters = None if threshold_json is None else {THRESHOLD_PARAMETER: threshold_json}
        # Triton drops a request that is still queued by then.
        timeout = max(1, int(min(left_s, _LONGEST_QUEUE_TIMEOUT_S) * 1e6))

        def infer(headers: dict[str, str] | None, **options: Any) -> Any:
            return client.infer(
                self.endpoint.model_name,
                inputs=[image_input],
                outputs=outputs,
                request_id=context.request_id,
                timeout=timeout,
                parameters=parameters,
                headers={**context.headers, **(headers or {})} or None,
                **options,
            )

        response = await self.ask_within(left_s, infer)
        return response.as_numpy(RESULT), response.as_numpy(STATUS)

    async def is_ready(self) -> bool:
        """See `Transport.is_ready`."""
        return bool(
            await self.call("is_server_ready", retries=0)
            and await self.call("is_model_ready", self.endpoint.model_name, retries=0)
        )

    async def max_batch_size(self) -> int | None:
        """See `Transport.max_batch_size`."""
        triton_error = _triton_error()

        async def attempt(left_s: float) -> int | None:
            with mapped_errors(self.endpoint):
                try:
                    config = await self.ask_within(left_s, self.client.get_model_config, self.endpoint.model_name)
                    return self._read_batch_size(config)
                except triton_error as error:
                    if is_closed_api(*triton_status(error)):
                        return None
                    raise

        size = await call_with_retries(attempt, self._options.retries, self.endpoint.timeout_s)
        if size is not None and size < 1:
            raise ProtocolError(
                f"Expected model {self.endpoint.model_name!r} to take batches, got max_batch_size {size}; is this an "
                "mlcls model?"
            )
        return size

    @abc.abstractmethod
    def _read_batch_size(self, config: Any) -> int: ...

    async def close(self) -> None:
        """See `Transport.close`."""
        if self._client is None:
            return
        if self._region is not None:
            await self._region.close()
        client, self._client = self._client, None
        with mapped_errors(self.endpoint):
            await client.close()


class GrpcTransport(TritonTransport):
    """Requests over gRPC."""

    def __init__(self, endpoint: Endpoint, options: ConnectionOptions = _NO_OPTIONS) -> None:
        """Prepare a channel."""
        super().__init__(endpoint, options, "tritonclient.grpc.aio")

    def _open_client(self, tritonclient: Any) -> Any:
        channel_options = [
            # tritonclient's own options, which any option would replace: messages as large as protobuf allows.
            ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
            # gRPC's default grows to 120 s: a server that starts late would be noticed minutes later.
            ("grpc.max_reconnect_backoff_ms", _MAX_RECONNECT_BACKOFF_MS),
        ]
        if is_loopback(self.endpoint.url):
            # gRPC would send even these to the environment's proxy, which cannot reach this machine.
            channel_options.append(("grpc.enable_http_proxy", 0))
        tls = {} if self._options.tls is None else {"ssl": True, **asdict(self._options.tls)}
        return tritonclient.InferenceServerClient(url=self.endpoint.url, channel_args=channel_options, **tls)

    async def ask_within(
        self, left_s: float, call: Callable[..., Awaitable[Answered]], *args: Any, admin: bool = False
    ) -> Answered:
        """See `TritonTransport.ask_within`."""
        return await call(*args, headers=self.headers(admin), client_timeout=left_s)

    def _admin_headers(self) -> dict[str, str]:
        key = self._options.admin_key
        return {} if key is None else {f"triton-grpc-protocol-{ADMIN_KEY_HEADER}": key}

    def _read_batch_size(self, config: Any) -> int:
        return int(config.config.max_batch_size)


class HttpTransport(TritonTransport):
    """Requests over HTTP."""

    def __init__(self, endpoint: Endpoint, options: ConnectionOptions = _NO_OPTIONS) -> None:
        """Prepare a pool of connections."""
        super().__init__(endpoint, options, "tritonclient.http.aio")
        self._output_options = {"binary_data": True}

    def _open_client(self, tritonclient: Any) -> Any:
        tls = {} if self._options.tls is None else {"ssl": True, "ssl_context": make_ssl_context(self._options.tls)}
        return tritonclient.InferenceServerClient(
            url=self.endpoint.url,
            conn_limit=0,  # `concurrency` is the limit
            conn_timeout=None,  # `ask_within` is
            **tls,
        )

    async def ask_within(
        self, left_s: float, call: Callable[..., Awaitable[Answered]], *args: Any, admin: bool = False
    ) -> Answered:
        """See `TritonTransport.ask_within`."""
        return await asyncio.wait_for(call(*args, headers=self.headers(admin)), left_s)

    def _admin_headers(self) -> dict[str, str]:
        key = self._options.admin_key
        return {} if key is None else {ADMIN_KEY_HEADER: key}

    def _read_batch_size(self, config: Any) -> int:
        return int(config.get("max_batch_size", 0))


def _triton_error() -> type[Exception]:
    error: type[Exception] = importlib.import_module("tritonclient.utils").InferenceServerException
    return error


def _to_tensor(encoded_images: Sequence[bytes]) -> Any:
    import numpy as np

    images = np.empty((len(encoded_images), 1), dtype=np.object_)
    for row, encoded_image in enumerate(encoded_images):
        images[row, 0] = encoded_image
    return images


def open_transport(
    model_name: str, url: str | None, protocol: str, timeout_s: float, options: ConnectionOptions = _NO_OPTIONS
) -> TritonTransport:
    """Make the transport of a protocol; nothing is sent yet.

    Args:
        model_name: The ensemble.
        url: `host:port`; None for the environment variable MLCLS_URL, or the protocol's usual port on this machine.
        protocol: `grpc` or `http`.
        timeout_s: Time limit of one request with its retries, in seconds.
        options: TLS, headers, retries, shared memory.

    Raises:
        InvalidRequestError: The protocol is unknown, the address has a scheme, or the time limit is not above 0.
    """
    if not model_name or not isinstance(model_name, str):
        raise InvalidRequestError(f"Expected the name of a model, such as 'PP-LCNet_x1_0_ML', got {model_name!r}.")
    return _open_transport(model_name, url, protocol, timeout_s, options)


def open_server_transport(
    url: str | None, protocol: str, timeout_s: float, options: ConnectionOptions = _NO_OPTIONS
) -> TritonTransport:
    """Make a transport for calls about the server itself; see `open_transport`."""
    return _open_transport("", url, protocol, timeout_s, options)


def _open_transport(
    model_name: str, url: str | None, protocol: str, timeout_s: float, options: ConnectionOptions
) -> TritonTransport:
    if protocol not in DEFAULT_URLS:
        raise InvalidRequestError(f"Expected protocol 'grpc' or 'http', got {protocol!r}.")
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float) or not 0 < timeout_s < math.inf:
        raise InvalidRequestError(f"Expected a time limit above 0 s, got {timeout_s!r}.")
    if url is None:
        url = os.environ.get(URL_VARIABLE) or DEFAULT_URLS[protocol]
    if "://" in url or ":" not in url:
        raise InvalidRequestError(f"Expected an address of the form host:port, without a scheme, got {url!r}.")
    endpoint = Endpoint(url=url, protocol=protocol, model_name=model_name, timeout_s=timeout_s)
    return GrpcTransport(endpoint, options) if protocol == "grpc" else HttpTransport(endpoint, options)
