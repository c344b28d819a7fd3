"""The connection to a server: requests over gRPC or HTTP on tritonclient's asyncio clients."""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from mlcls_client.base.text import end_sentence
from mlcls_client.errors import (
    MlclsClientError,
    ModelNotFoundError,
    ProtocolError,
    ServerError,
    ServerUnavailableError,
)
from mlcls_client.transport.connection import ADMIN_KEY_HEADER, Connection, is_loopback, make_ssl_context
from mlcls_client.transport.contract import IMAGE, RESULT, STATUS, THRESHOLD_PARAMETER, Answer, read_answers
from mlcls_client.transport.error_mapping import is_lost_shared_memory, mapped_errors
from mlcls_client.transport.request import Answered, call_with_retries
from mlcls_client.transport.shared_memory import ServerRegion

_MAX_MESSAGE_BYTES: Final = 2**31 - 1
_MAX_RECONNECT_BACKOFF_MS: Final = 1000
# Triton counts in microseconds, and a day is as good as forever.
_LONGEST_QUEUE_TIMEOUT_S: Final = 86_400.0

logger = logging.getLogger("mlcls_client")


class Transport:
    """A connection to one ensemble on one server, for one event loop.

    tritonclient's two modules have the same names and almost the same calls.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._is_grpc = connection.protocol == "grpc"
        self._client: Any = None
        self._max_batch_size: int | None = None
        self._region = ServerRegion(connection, self.ask) if connection.shared_memory else None

    async def ask(
        self, left_s: float, method: str, *args: Any, admin: bool = False, trace: Mapping[str, str] = {}, **options: Any
    ) -> Any:
        """Call a method of tritonclient's client within `left_s` seconds; `admin` sends the key of the closed APIs.

        Raises:
            MlclsClientError: Any error in `mlcls_client.errors`.
        """
        headers = {**trace, **self.connection.headers}  # a new dict, because tritonclient adds to it
        if admin and self.connection.admin_key is not None:
            prefix = "triton-grpc-protocol-" if self._is_grpc else ""
            headers[prefix + ADMIN_KEY_HEADER] = self.connection.admin_key
        options["headers"] = headers or None
        with mapped_errors(self.connection):
            call = getattr(self._open(), method)
            if self._is_grpc:
                return await call(*args, client_timeout=left_s, **options)
            return await asyncio.wait_for(call(*args, **options), left_s)

    async def call(self, method: str, *args: Any, retries: int | None = None, admin: bool = False) -> Any:
        """Make a call like `ask`, within the connection's time limit and with its retries."""
        return await self._retry(lambda left_s: self.ask(left_s, method, *args, admin=admin), retries)

    async def _retry(self, attempt: Callable[[float], Awaitable[Answered]], retries: int | None = None) -> Answered:
        retries = self.connection.retries if retries is None else retries
        return await call_with_retries(attempt, retries, self.connection.timeout_s)

    def _open(self) -> Any:
        """Return tritonclient's client, made on the first call, because it belongs to the event loop of that call."""
        if self._client is not None:
            return self._client
        # Imported here, because importing tritonclient takes longer than the rest of this package.
        self._tritonclient: Any = importlib.import_module(f"tritonclient.{self.connection.protocol}.aio")
        url, tls = self.connection.url, self.connection.tls
        options: dict[str, Any] = {} if tls is None else {"ssl": True}
        if self._is_grpc:
            options["channel_args"] = [
                # tritonclient's own options, which any option would replace: messages as large as protobuf allows.
                ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
                ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
                # gRPC's default grows to 120 s: a server that starts late would be noticed minutes later.
                ("grpc.max_reconnect_backoff_ms", _MAX_RECONNECT_BACKOFF_MS),
                # gRPC would send even these to the environment's proxy, which cannot reach this machine.
                *([("grpc.enable_http_proxy", 0)] if is_loopback(url) else []),
            ]
            options.update(tls or {})
        else:
            options.update(conn_limit=0, conn_timeout=None)  # `concurrency` and `ask` are the limits
            if tls is not None:
                options["ssl_context"] = make_ssl_context(tls)
        self._client = self._tritonclient.InferenceServerClient(url, **options)
        return self._client

    async def infer(
        self, encoded_images: Sequence[bytes], threshold_json: str | None, request_id: str, trace: Mapping[str, str]
    ) -> list[Answer]:
        """Send one request with the headers `trace` and return one answer per image; cancelling cancels the request.

        Raises:
            InvalidRequestError: The server rejects the request, or no image in it is good.
            MlclsClientError: Any other error in `mlcls_client.errors`.
        """
        parameters = None if threshold_json is None else {THRESHOLD_PARAMETER: threshold_json}
        options = {"request_id": request_id, "trace": trace, "parameters": parameters}

        async def attempt(left_s: float) -> Any:
            try:
                return await self._infer_once(encoded_images, left_s, options)
            except ModelNotFoundError as error:
                # A server that is still loading its models may have it later.
                if await self.ask(left_s, "is_server_ready"):
                    raise
                raise ServerUnavailableError(
                    f"Expected {self.connection.subject} from the {self.connection.server}, which is not ready yet: "
                    f"{end_sentence(error.server_text or '')}",
                    server_text=error.server_text,
                ) from error

        response = await self._retry(attempt)
        with mapped_errors(self.connection):
            result, status = response.as_numpy(RESULT), response.as_numpy(STATUS)
        return read_answers(result, status, len(encoded_images))

    async def _infer_once(
        self, encoded_images: Sequence[bytes], left_s: float, options: dict[str, Any], is_second: bool = False
    ) -> Any:
        clock = asyncio.get_running_loop().time
        deadline = clock() + left_s
        self._open()
        image_input = self._tritonclient.InferInput(IMAGE, [len(encoded_images), 1], "BYTES")
        block = None if self._region is None else await self._region.place(encoded_images, left_s)
        if block is None:
            image_input.set_data_from_numpy(_to_tensor(encoded_images))
        else:
            image_input.set_shared_memory(block.region.name, block.size_bytes, block.offset)
        left_s = max(0.001, deadline - clock())
        try:
            return await self.ask(
                left_s,
                "infer",
                self.connection.model_name,
                inputs=[image_input],
                outputs=[self._tritonclient.InferRequestedOutput(name) for name in (RESULT, STATUS)],
                # Triton drops a request that is still queued by then.
                timeout=max(1, int(min(left_s, _LONGEST_QUEUE_TIMEOUT_S) * 1e6)),
                **options,
            )
        except MlclsClientError as error:
            is_lost = is_lost_shared_memory(error.server_text or "")
            if self._region is None or block is None or not is_lost or is_second:
                raise
            # The server was restarted and no longer knows the region.
            self._region.forget(block)
        finally:
            if block is not None:
                block.region.release(block)
        return await self._infer_once(encoded_images, max(0.001, deadline - clock()), options, is_second=True)

    async def is_ready(self) -> bool:
        """Return whether the model can answer now."""
        return bool(
            await self.call("is_server_ready", retries=0)
            and await self.call("is_model_ready", self.connection.model_name, retries=0)
        )

    async def max_batch_size(self) -> int:
        """Return how many images one request may hold: 1 if the server does not tell its configuration.

        Servers in production may close the model-configuration API (`--grpc-restricted-protocol`,
        `--http-restricted-api`).
        """
        if self._max_batch_size is None:
            try:
                config = await self.call("get_model_config", self.connection.model_name)
            except ServerError as error:
                logger.warning("Sending one image per request, because the batch size is unknown. %s", error)
                config = {"max_batch_size": 1}
            size = int(config.get("max_batch_size", 0) if isinstance(config, dict) else config.config.max_batch_size)
            if size < 1:
                raise ProtocolError(
                    f"Expected {self.connection.subject} to take batches, got max_batch_size {size}; is this an mlcls "
                    "model?"
                )
            self._max_batch_size = size
        return self._max_batch_size

    async def close(self) -> None:
        """Close the connection; a second call does nothing."""
        if self._client is None:
            return
        if self._region is not None:
            await self._region.close()
        client, self._client = self._client, None
        with mapped_errors(self.connection):
            await client.close()


def _to_tensor(encoded_images: Sequence[bytes]) -> Any:
    import numpy as np

    return np.array([[image] for image in encoded_images], dtype=np.object_)
