"""The connection to a server: requests over gRPC or HTTP on tritonclient's asyncio clients."""

from __future__ import annotations

import asyncio
import importlib
import logging
import random
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from mlcls_client.base.text import end_sentence
from mlcls_client.errors import (
    MlclsClientError,
    ModelNotFoundError,
    ProtocolError,
    ServerError,
    ServerUnavailableError,
)
from mlcls_client.transport.connection import ADMIN_KEY_HEADER, Connection, make_ssl_context
from mlcls_client.transport.contract import IMAGE, RESULT, STATUS, THRESHOLD_PARAMETER, Answer, read_answers
from mlcls_client.transport.error_mapping import is_lost_shared_memory, mapped_errors
from mlcls_client.transport.forking import check_grpc, watch
from mlcls_client.transport.shared_memory import ServerRegion

_MAX_MESSAGE_BYTES: Final = 2**31 - 1
_MAX_RECONNECT_BACKOFF_MS: Final = 1000
# Triton counts in microseconds, and a day is as good as forever.
_LONGEST_QUEUE_TIMEOUT_S: Final = 86_400.0
_ROUND_ROBIN: Final = '{"loadBalancingConfig": [{"round_robin": {}}]}'
_FIRST_PAUSE_S: Final = 0.2
_MAX_PAUSE_S: Final = 5.0
_FORK_PAUSE_S: Final = 0.01

Answered = TypeVar("Answered")

logger = logging.getLogger("mlcls_client")


class Transport:
    """A connection to one ensemble on one server, for one event loop.

    tritonclient's two modules have the same names and almost the same calls.

    Attributes:
        connection: The server and how to ask it.
        loop: The event loop of the first request; None before.
        in_flight: Calls over gRPC that are not answered yet.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.loop: asyncio.AbstractEventLoop | None = None
        self.in_flight = 0
        self._is_grpc = connection.protocol == "grpc"
        self._client: Any = None
        self._suspensions = 0
        self._max_batch_size: int | None = None
        self._region = ServerRegion(connection, self.ask) if connection.shared_memory else None

    async def ask(
        self, left_s: float, method: str, *args: Any, admin: bool = False, trace: Mapping[str, str] = {}, **options: Any
    ) -> Any:
        """Call a method of tritonclient's client within `left_s` seconds; `admin` sends the key of the closed APIs.

        Raises:
            MlclsClientError: Any error in `mlcls_client.errors`.
        """
        headers = {**trace, **self.connection.headers}
        if admin and self.connection.admin_key is not None:
            prefix = "triton-grpc-protocol-" if self._is_grpc else ""
            headers[prefix + ADMIN_KEY_HEADER] = self.connection.admin_key
        deadline = time.monotonic() + left_s
        while True:
            left_s = max(0.001, deadline - time.monotonic())
            options["headers"] = dict(headers) or None  # tritonclient adds to it
            with mapped_errors(self.connection):
                call = getattr(self._open(), method)
                if not self._is_grpc:
                    return await asyncio.wait_for(call(*args, **options), left_s)
                suspensions = self._suspensions
                self.in_flight += 1
                try:
                    return await call(*args, client_timeout=left_s, **options)
                except asyncio.CancelledError:
                    if self._suspensions == suspensions:
                        raise
                finally:
                    self.in_flight -= 1
            del call  # it holds the channel, which has to be gone when the process is forked
            await asyncio.sleep(_FORK_PAUSE_S)

    async def call(self, method: str, *args: Any, admin: bool = False) -> Any:
        """Make a call like `ask`, within the connection's time limit and with its retries."""
        return await self.retry(lambda left_s: self.ask(left_s, method, *args, admin=admin))

    async def retry(self, attempt: Callable[[float], Awaitable[Answered]]) -> Answered:
        """Make a call, and retry it if that is safe, all within the connection's time limit.

        Only a `ServerUnavailableError` is retried: the connection was refused or lost, or the server or the model is
        not ready. A prediction changes nothing on the server, so it can be repeated if its answer was lost. A request
        that the server rejected (a bad request, an unknown model) or did not answer in time is not retried. `attempt`
        is given the seconds that are left.

        Raises:
            ServerUnavailableError: The last attempt failed, or no time is left for the next one.
            DeadlineExceededError: No answer within the time limit.
        """
        left_s, number = self.connection.timeout_s, 0
        deadline = time.monotonic() + left_s
        while True:
            try:
                return await attempt(left_s)
            except ServerUnavailableError as error:
                # Randomly up to half shorter: clients that lost the same server must not all come back at once.
                pause_s = min(_MAX_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(number, 16)) * random.uniform(0.5, 1.0)
                left_s = deadline - time.monotonic() - pause_s
                number += 1
                cause = getattr(error.__cause__, "certificate_error", error.__cause__)  # aiohttp wraps the error of TLS
                # A certificate that is not trusted now will not be trusted a second later.
                if number > self.connection.retries or left_s <= 0 or isinstance(cause, ssl.SSLCertVerificationError):
                    raise
            await asyncio.sleep(pause_s)

    def check_usable(self) -> None:
        """Check that this process and the running event loop can use the connection.

        Raises:
            MlclsClientError: It belongs to another event loop, or gRPC was in use when this process was forked.
        """
        if self.loop not in (None, asyncio.get_running_loop()):
            raise MlclsClientError(
                f"AsyncModel {self.connection.model_name!r} belongs to the event loop of its first call, and this is "
                "another loop. Make one model for each loop: call create_async_model inside of the coroutine that "
                "asyncio.run gets."
            )
        if self._is_grpc:
            check_grpc()

    def _open(self) -> Any:
        """Return tritonclient's client, made on the first call, because it belongs to the event loop of that call."""
        self.check_usable()
        if self._client is not None:
            return self._client
        self.loop = asyncio.get_running_loop()
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
                *([("grpc.enable_http_proxy", 0)] if self.connection.is_local else []),
                *([("grpc.service_config", _ROUND_ROBIN)] if self.connection.has_replicas else []),
            ]
            url = self.connection.grpc_target
            options.update(tls or {})
        else:
            options.update(conn_limit=0, conn_timeout=None)  # `concurrency` and `ask` are the limits
            if tls is not None:
                options["ssl_context"] = make_ssl_context(tls)
        self._client = self._tritonclient.InferenceServerClient(url, **options)
        watch(self)
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
                # A server that is still loading its models may have it later, and another replica may have it now.
                if not self.connection.has_replicas and await self.ask(left_s, "is_server_ready"):
                    raise
                raise ServerUnavailableError(
                    f"Expected {self.connection.subject} from the {self.connection.server}, which is not ready yet: "
                    f"{end_sentence(error.server_text or '')}",
                    server_text=error.server_text,
                ) from error

        response = await self.retry(attempt)
        with mapped_errors(self.connection):
            result, status = response.as_numpy(RESULT), response.as_numpy(STATUS)
        return read_answers(result, status, len(encoded_images))

    async def _infer_once(
        self, encoded_images: Sequence[bytes], left_s: float, options: dict[str, Any], is_second: bool = False
    ) -> Any:
        deadline = time.monotonic() + left_s
        self._open()
        image_input = self._tritonclient.InferInput(IMAGE, [len(encoded_images), 1], "BYTES")
        block = None if self._region is None else await self._region.place(encoded_images, left_s)
        if block is None:
            image_input.set_data_from_numpy(_to_tensor(encoded_images))
        else:
            image_input.set_shared_memory(block.region.name, block.size_bytes, block.offset)
        left_s = max(0.001, deadline - time.monotonic())
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
        return await self._infer_once(encoded_images, max(0.001, deadline - time.monotonic()), options, is_second=True)

    async def is_ready(self) -> bool:
        """Return whether the model can answer now."""
        return bool(
            await self.ask(self.connection.timeout_s, "is_server_ready")
            and await self.ask(self.connection.timeout_s, "is_model_ready", self.connection.model_name)
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

    @property
    def has_channel(self) -> bool:
        """Whether gRPC has an open channel for it."""
        return self._is_grpc and self._client is not None

    async def suspend(self) -> None:
        """Close the channel before a fork; requests in flight end, and are sent again on a new one."""
        if self.has_channel:
            client, self._client = self._client, None
            self._suspensions += 1
            await client.close()

    async def close(self) -> None:
        """Close the connection; a second call does nothing."""
        if self._region is not None:
            await self._region.close()
        client, self._client = self._client, None
        if client is not None:
            with mapped_errors(self.connection):
                await client.close()


def _to_tensor(encoded_images: Sequence[bytes]) -> Any:
    import numpy as np

    return np.array([[image] for image in encoded_images], dtype=np.object_)
