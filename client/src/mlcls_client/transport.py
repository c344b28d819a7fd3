"""How requests travel: one protocol class, with an implementation over gRPC and one over HTTP.

A test, or a program with a transport of its own, gives `Model` any object that has these methods.
"""

import abc
import importlib
import ipaddress
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Literal, Protocol, TypeVar

from mlcls_client.connection import ConnectionOptions, TlsFiles
from mlcls_client.contract import IMAGE, RESULT, STATUS, THRESHOLD_PARAMETER, Answer, read_answers
from mlcls_client.error_mapping import Endpoint, is_closed_api, mapped_errors, triton_status
from mlcls_client.errors import InvalidRequestError, ProtocolError
from mlcls_client.retry import call_with_retries

ProtocolName = Literal["grpc", "http"]

DEFAULT_URLS: dict[str, str] = {"grpc": "localhost:8001", "http": "localhost:8000"}
DEFAULT_TIMEOUT_S = 30.0

_NO_OPTIONS = ConnectionOptions()
Answered = TypeVar("Answered")

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


def open_transport(
    model_name: str, url: str | None, protocol: str, timeout_s: float, options: ConnectionOptions = _NO_OPTIONS
) -> Transport:
    """Make the transport of a protocol; nothing is sent yet.

    Args:
        model_name: the ensemble.
        url: `host:port`; None for the protocol's usual port on this machine.
        protocol: `grpc` or `http`.
        timeout_s: time limit of one request with its retries, seconds.
        options: TLS, headers, retries.

    Raises:
        InvalidRequestError: an unknown protocol, an address with a scheme, a time limit that is not above 0, or a PEM
            file that holds something else.
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
    return GrpcTransport(endpoint, options) if protocol == "grpc" else HttpTransport(endpoint, options)


class _TritonTransport(abc.ABC):
    """What both protocols share: tritonclient's two modules have the same names and almost the same calls."""

    def __init__(self, endpoint: Endpoint, options: ConnectionOptions, module_name: str, **client_options: Any) -> None:
        self.endpoint = endpoint
        self._retries = options.retries
        # Imported here, because importing tritonclient takes longer than the whole rest of this package.
        self._tritonclient: Any = importlib.import_module(module_name)
        with mapped_errors(endpoint):
            self._client: Any = self._tritonclient.InferenceServerClient(url=endpoint.url, **client_options)
        self._call_options: dict[str, Any] = {"headers": dict(options.headers)} if options.headers else {}
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

        def ask(time_limit: dict[str, Any]) -> tuple[Any, Any]:
            response = self._client.infer(
                self.endpoint.model_name,
                inputs=[image_input],
                outputs=[
                    self._tritonclient.InferRequestedOutput(name, **self._output_options) for name in (RESULT, STATUS)
                ],
                parameters=None if threshold_json is None else {THRESHOLD_PARAMETER: threshold_json},
                **self._call_options,
                **time_limit,
            )
            return response.as_numpy(RESULT), response.as_numpy(STATUS)

        result, status = self._call(ask, self._retries)
        return read_answers(result, status, len(encoded_images))

    def is_ready(self) -> bool:
        """See `Transport.is_ready`."""
        return self._call(
            lambda time_limit: bool(
                self._client.is_server_ready(**self._call_options, **time_limit)
                and self._client.is_model_ready(self.endpoint.model_name, **self._call_options, **time_limit)
            ),
            retries=0,
        )

    def max_batch_size(self) -> int | None:
        """See `Transport.max_batch_size`."""
        triton_error: type[Exception] = importlib.import_module("tritonclient.utils").InferenceServerException

        def ask(time_limit: dict[str, Any]) -> int | None:
            try:
                return self._configured_batch_size(time_limit)
            except triton_error as error:
                if is_closed_api(*triton_status(error)):
                    return None
                raise

        size = self._call(ask, self._retries)
        if size is None:
            return None
        if size < 1:
            raise ProtocolError(
                f"expected model {self.endpoint.model_name!r} to take batches, its max_batch_size is {size}; "
                "is this a model of `mlcls`?"
            )
        return size

    def _call(self, ask: Callable[[dict[str, Any]], Answered], retries: int) -> Answered:
        """Make a call and its retries; `ask` is given the arguments that hold it to the time that is left."""

        def attempt(left_s: float) -> Answered:
            with mapped_errors(self.endpoint):
                return self._ask_within(ask, left_s)

        return call_with_retries(attempt, retries, self.endpoint.timeout_s)

    @abc.abstractmethod
    def _ask_within(self, ask: Callable[[dict[str, Any]], Answered], left_s: float) -> Answered: ...

    @abc.abstractmethod
    def _configured_batch_size(self, time_limit: dict[str, Any]) -> int: ...

    def close(self) -> None:
        """See `Transport.close`."""
        with mapped_errors(self.endpoint):
            self._client.close()


class GrpcTransport(_TritonTransport):
    """Requests over gRPC."""

    def __init__(self, endpoint: Endpoint, options: ConnectionOptions = _NO_OPTIONS) -> None:
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
        tls = {} if options.tls is None else {"ssl": True, **asdict(options.tls)}
        super().__init__(endpoint, options, "tritonclient.grpc", channel_args=channel_options, **tls)

    def _ask_within(self, ask: Callable[[dict[str, Any]], Answered], left_s: float) -> Answered:
        return ask({"client_timeout": left_s})

    def _configured_batch_size(self, time_limit: dict[str, Any]) -> int:
        response = self._client.get_model_config(self.endpoint.model_name, **self._call_options, **time_limit)
        return int(response.config.max_batch_size)


class HttpTransport(_TritonTransport):
    """Requests over HTTP."""

    def __init__(self, endpoint: Endpoint, options: ConnectionOptions = _NO_OPTIONS) -> None:
        """Prepare the connection pool; it connects with the first call."""
        tls = {} if options.tls is None else {"ssl": True, "ssl_context_factory": _ssl_context_factory(options.tls)}
        super().__init__(
            endpoint,
            options,
            "tritonclient.http",
            connection_timeout=endpoint.timeout_s,
            network_timeout=endpoint.timeout_s,
            **tls,
        )
        self._output_options = {"binary_data": True}

    def _ask_within(self, ask: Callable[[dict[str, Any]], Answered], left_s: float) -> Answered:
        # The HTTP library limits each wait on the connection, not a request; its sockets are gevent's, whose
        # timeout ends whatever they wait for.
        gevent: Any = importlib.import_module("gevent")
        with gevent.Timeout(left_s, TimeoutError("no answer in time")):
            return ask({})

    def _configured_batch_size(self, time_limit: dict[str, Any]) -> int:
        config = self._client.get_model_config(self.endpoint.model_name, **self._call_options, **time_limit)
        return int(config.get("max_batch_size", 0))


def _ssl_context_factory(files: TlsFiles) -> Callable[..., Any]:
    """Return what the HTTP library calls with `cafile`, its own choice of root certificates."""
    gevent_ssl: Any = importlib.import_module("gevent.ssl")

    def make_context(cafile: str | None = None) -> Any:
        context = gevent_ssl.create_default_context(cafile=files.root_certificates or cafile)
        if files.certificate_chain is not None:
            context.load_cert_chain(files.certificate_chain, files.private_key)
        return context

    return make_context


def _is_loopback(url: str) -> bool:
    """Whether a `host:port` names this machine."""
    host = url.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
