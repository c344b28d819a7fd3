"""How requests travel: one protocol class, with an implementation over gRPC and one over HTTP.

A test, or a program with a transport of its own, gives `Model` any object that has these methods.
"""

import abc
import importlib
import ipaddress
import math
from collections.abc import Sequence
from typing import Any, Literal, Protocol

from mlcls_client.contract import IMAGE, RESULT, STATUS, THRESHOLD_PARAMETER, Answer, read_answers
from mlcls_client.error_mapping import Endpoint, is_closed_api, mapped_errors, triton_status
from mlcls_client.errors import InvalidRequestError, ProtocolError

ProtocolName = Literal["grpc", "http"]

DEFAULT_URLS: dict[str, str] = {"grpc": "localhost:8001", "http": "localhost:8000"}
DEFAULT_TIMEOUT_S = 30.0

_MAX_MESSAGE_BYTES = 2**31 - 1
_MAX_RECONNECT_BACKOFF_MS = 1000


class Transport(Protocol):
    """What `Model` needs of a connection to one ensemble on one server."""

    @property
    def endpoint(self) -> Endpoint:
        """Address, protocol, model and time limit."""
        ...

    def infer(self, encoded_images: Sequence[bytes], threshold_json: str | None) -> list[Answer]:
        """Send one request and return one answer per image, in order.

        Args:
            encoded_images: N image files, byte for byte; N is at most `max_batch_size()`.
            threshold_json: JSON text of the request parameter `threshold`; None for the model's own threshold.

        Raises:
            InvalidRequestError: the server refuses the request, or no image in it is good.
            MlclsClientError: any other of the tree in `mlcls_client.errors`.
        """
        ...

    def is_ready(self) -> bool:
        """Tell whether the model can answer now.

        Raises:
            ServerUnavailableError: nothing answers at the address.
        """
        ...

    def max_batch_size(self) -> int | None:
        """Return how many images one request may hold; None where the server keeps its configuration to itself.

        Servers in production close the model-configuration API (`--grpc-restricted-protocol`,
        `--http-restricted-api`).
        """
        ...

    def close(self) -> None:
        """Close the connection; a second call does nothing."""
        ...


def open_transport(model_name: str, url: str | None, protocol: str, timeout_s: float) -> Transport:
    """Make the transport of a protocol; nothing is sent yet.

    Args:
        model_name: the ensemble.
        url: `host:port`; None for the protocol's usual port on this machine.
        protocol: `grpc` or `http`.
        timeout_s: time limit of one request, seconds.

    Raises:
        InvalidRequestError: an unknown protocol, an address with a scheme, or a time limit that is not above 0.
    """
    if protocol not in DEFAULT_URLS:
        raise InvalidRequestError(f"expected protocol 'grpc' or 'http', got {protocol!r}")
    if not model_name or not isinstance(model_name, str):
        raise InvalidRequestError(f"expected the name of a model, such as 'PP-LCNet_x1_0_ML', got {model_name!r}")
    if not math.isfinite(timeout_s) or timeout_s <= 0:
        raise InvalidRequestError(f"expected a time limit above 0 s, got {timeout_s!r}")
    url = DEFAULT_URLS[protocol] if url is None else url
    if "://" in url or ":" not in url:
        raise InvalidRequestError(f"expected an address of the form host:port, without a scheme, got {url!r}")
    endpoint = Endpoint(url=url, protocol=protocol, model_name=model_name, timeout_s=timeout_s)
    return GrpcTransport(endpoint) if protocol == "grpc" else HttpTransport(endpoint)


class _TritonTransport(abc.ABC):
    """What both protocols share: tritonclient's two modules have the same names and almost the same calls."""

    def __init__(self, endpoint: Endpoint, module_name: str, **client_options: Any) -> None:
        self.endpoint = endpoint
        # Imported here, because importing tritonclient takes longer than the whole rest of this package.
        self._tritonclient: Any = importlib.import_module(module_name)
        with mapped_errors(endpoint):
            self._client: Any = self._tritonclient.InferenceServerClient(url=endpoint.url, **client_options)
        self._call_options: dict[str, Any] = {}
        self._output_options: dict[str, Any] = {}

    def infer(self, encoded_images: Sequence[bytes], threshold_json: str | None) -> list[Answer]:
        """See `Transport.infer`."""
        import numpy as np

        images = np.empty((len(encoded_images), 1), dtype=np.object_)
        for row, encoded_image in enumerate(encoded_images):
            images[row, 0] = encoded_image
        with mapped_errors(self.endpoint):
            image_input = self._tritonclient.InferInput(IMAGE, list(images.shape), "BYTES")
            image_input.set_data_from_numpy(images)
            response = self._client.infer(
                self.endpoint.model_name,
                inputs=[image_input],
                outputs=[
                    self._tritonclient.InferRequestedOutput(name, **self._output_options) for name in (RESULT, STATUS)
                ],
                parameters=None if threshold_json is None else {THRESHOLD_PARAMETER: threshold_json},
                **self._call_options,
            )
            result, status = response.as_numpy(RESULT), response.as_numpy(STATUS)
        return read_answers(result, status, len(encoded_images))

    def is_ready(self) -> bool:
        """See `Transport.is_ready`."""
        with mapped_errors(self.endpoint):
            return bool(
                self._client.is_server_ready(**self._call_options)
                and self._client.is_model_ready(self.endpoint.model_name, **self._call_options)
            )

    def max_batch_size(self) -> int | None:
        """See `Transport.max_batch_size`."""
        triton_error: type[Exception] = importlib.import_module("tritonclient.utils").InferenceServerException
        with mapped_errors(self.endpoint):
            try:
                size = self._configured_batch_size()
            except triton_error as error:
                if is_closed_api(*triton_status(error)):
                    return None
                raise
        if size < 1:
            raise ProtocolError(
                f"expected model {self.endpoint.model_name!r} to take batches, its max_batch_size is {size}; "
                "is this a model of `mlcls`?"
            )
        return size

    @abc.abstractmethod
    def _configured_batch_size(self) -> int: ...

    def close(self) -> None:
        """See `Transport.close`."""
        with mapped_errors(self.endpoint):
            self._client.close()


class GrpcTransport(_TritonTransport):
    """Requests over gRPC. The time limit holds for a request as a whole."""

    def __init__(self, endpoint: Endpoint) -> None:
        """Prepare the channel; gRPC connects with the first call."""
        channel_options = [
            # tritonclient's own options, which giving any option replaces: messages as large as protobuf allows.
            ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
            # gRPC's default grows to 120 s: a server that comes up late would be noticed minutes later.
            ("grpc.max_reconnect_backoff_ms", _MAX_RECONNECT_BACKOFF_MS),
        ]
        if _is_loopback(endpoint.url):
            # gRPC sends even these to the environment's proxy, which has no way to this machine.
            channel_options.append(("grpc.enable_http_proxy", 0))
        super().__init__(endpoint, "tritonclient.grpc", channel_args=channel_options)
        self._call_options = {"client_timeout": endpoint.timeout_s}

    def _configured_batch_size(self) -> int:
        response = self._client.get_model_config(self.endpoint.model_name, **self._call_options)
        return int(response.config.max_batch_size)


class HttpTransport(_TritonTransport):
    """Requests over HTTP. The time limit holds for each wait on the connection, as the HTTP library has it."""

    def __init__(self, endpoint: Endpoint) -> None:
        """Prepare the connection pool; it connects with the first call."""
        super().__init__(
            endpoint,
            "tritonclient.http",
            connection_timeout=endpoint.timeout_s,
            network_timeout=endpoint.timeout_s,
        )
        self._output_options = {"binary_data": True}

    def _configured_batch_size(self) -> int:
        config = self._client.get_model_config(self.endpoint.model_name)
        return int(config.get("max_batch_size", 0))


def _is_loopback(url: str) -> bool:
    """Whether a `host:port` names this machine."""
    host = url.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
