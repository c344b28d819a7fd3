"""`create_model` and `Model`: PaddleX's way to predict, answered by a server."""

import functools
import io
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from types import TracebackType
from typing import Literal, get_args

from mlcls_client.connection import Ssl, read_connection_options
from mlcls_client.contract import STATUS_OK, Answer, Threshold, encode_threshold
from mlcls_client.errors import (
    ImageRejectedError,
    InputError,
    InvalidRequestError,
    MlclsClientError,
    ServerUnavailableError,
)
from mlcls_client.fetch import DEFAULT_FETCH_LIMITS, FetchLimits
from mlcls_client.inputs import ImageInput, ImageSource, iterate_sources
from mlcls_client.result import MultiLabelResult
from mlcls_client.transport import DEFAULT_TIMEOUT_S, Transport, open_transport

OnError = Literal["raise", "yield", "skip"]

_POLL_INTERVAL_S = 0.25

logger = logging.getLogger("mlcls_client")


def create_model(
    model_name: str,
    url: str | None = None,
    protocol: str = "grpc",
    timeout_s: float = DEFAULT_TIMEOUT_S,
    *,
    ssl: Ssl = False,
    headers: Mapping[str, str] | None = None,
    api_key: str | None = None,
    retries: int = 0,
) -> "Model":
    """Make a model whose `predict` is answered by a server. Nothing is sent before the first prediction.

    Args:
        model_name: name of the ensemble, which is PaddleX's name of the model, e.g. `PP-LCNet_x1_0_ML`.
        url: `host:port`; None for `localhost:8001` over gRPC and `localhost:8000` over HTTP.
        protocol: `grpc` or `http`.
        timeout_s: time limit of one request, seconds; all its tries and the pauses between them are within it.
        ssl: False for no TLS; True for TLS with the usual root certificates; the path of a PEM file of root
            certificates; or a dict with the paths of PEM files: `root_certificates`, and for a server that wants to
            know its clients `private_key` and `certificate_chain`.
        headers: sent with every request, over gRPC as metadata with the names in lower case.
        api_key: sent with every request as header `authorization: Bearer <api_key>`; use it together with `ssl`.
        retries: further tries of a request that failed because the server could not be reached, the connection was
            lost, or the server or the model was not ready; with pauses that grow from about 0.2 s to 5 s.

    Raises:
        InvalidRequestError: an argument is not as described.
    """
    options = read_connection_options(ssl, headers, api_key, retries)
    return Model(open_transport(model_name, url, protocol, timeout_s, options))


class Model:
    """One model on one server. A context manager; not for several threads at once over HTTP."""

    def __init__(self, transport: Transport) -> None:
        """Make a model on a transport; `create_model` is the usual way."""
        self._transport = transport
        self._closed = False

    @property
    def model_name(self) -> str:
        """Name of the ensemble."""
        return self._transport.endpoint.model_name

    def predict(
        self,
        input: ImageInput,
        batch_size: int = 1,
        threshold: Threshold | None = None,
        on_error: OnError = "raise",
        *,
        fetch_limits: FetchLimits = DEFAULT_FETCH_LIMITS,
    ) -> Iterator[MultiLabelResult]:
        """Predict the labels of images; a generator with one result per image or page, in order.

        Images are read and sent as the results are taken. The results of a request do not depend on its size, so
        where the server takes fewer images per request than `batch_size`, requests are of the server's size. Where
        the server keeps its configuration to itself (a restricted model-configuration API), they hold one image each.

        Args:
            input: a path of a file or a folder, an http(s) URL, bytes of an image file, an array (H, W, 3) uint8 BGR,
                a PIL image, or a list of these. PDF files (extra `pdf`) and TIFF files give a result per page.
            batch_size: images per request, at most.
            threshold: a label is in the result when its score is above this: a number; a dict with `"default"` and
                class ids or label names; a list with one number per label; None for the model's own threshold.
            on_error: what becomes of an image that cannot be read or that the server rejects. `raise` raises once the
                results before it are taken; `yield` yields a result with `error` set; `skip` logs it and goes on.
            fetch_limits: size, time and redirects that the fetch of a URL may take.

        Raises:
            InvalidRequestError: an argument is not as described, or the server refuses the threshold.
            InputError: an input cannot be read (`on_error="raise"`), or is of an unsupported type.
            ImageRejectedError: the server rejects an image (`on_error="raise"`).
            ServerUnavailableError: no server answers, or the model is not ready.
            ModelNotFoundError: the server has no such model.
            DeadlineExceededError: no answer within the time limit.
            ProtocolError: the answer is not of the served contract.
            ServerError: the server failed.
        """
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise InvalidRequestError(f"expected a batch size of 1 or more, got {batch_size!r}")
        if on_error not in get_args(OnError):
            raise InvalidRequestError(f"expected on_error to be one of {get_args(OnError)}, got {on_error!r}")
        self._check_open()
        return self._predict(iterate_sources(input, fetch_limits), batch_size, encode_threshold(threshold), on_error)

    def _predict(
        self, sources: Iterator[ImageSource], batch_size: int, threshold_json: str | None, on_error: OnError
    ) -> Iterator[MultiLabelResult]:
        requests = _Requests(self._transport, threshold_json)
        request_size = 1 if batch_size == 1 else min(batch_size, self._max_batch_size)
        for batch in _batches(sources, request_size):
            self._check_open()
            for result in _answer_batch(requests, batch):
                if result.error is None or on_error == "yield":
                    yield result
                elif on_error == "raise":
                    raise result.error
                else:
                    logger.warning("skipped: %s", result.error)

    @functools.cached_property
    def _max_batch_size(self) -> int:
        size = self._transport.max_batch_size()
        if size is None:
            logger.warning(
                "the server does not tell the batch size of model %r (restricted API); sending one image per request",
                self.model_name,
            )
            return 1
        return size

    def is_ready(self) -> bool:
        """Tell whether the server answers and the model is ready."""
        self._check_open()
        try:
            return self._transport.is_ready()
        except MlclsClientError:
            return False

    def wait_until_ready(self, timeout_s: float) -> None:
        """Wait until the server answers and the model is ready.

        Args:
            timeout_s: how long to wait, seconds.

        Raises:
            ServerUnavailableError: it is not ready by then; the message tells the last reason.
        """
        self._check_open()
        deadline = time.monotonic() + timeout_s
        while True:
            reason = "the server answers, the model is not loaded or not ready"
            try:
                if self._transport.is_ready():
                    return
            except MlclsClientError as error:
                reason = error.server_text or str(error)
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0:
                raise ServerUnavailableError(
                    f"expected model {self.model_name!r} at {self._transport.endpoint.url} to be ready within "
                    f"{timeout_s:g} s: {reason}. Check the address, the protocol and the server's log."
                )
            time.sleep(min(_POLL_INTERVAL_S, remaining_s))

    def close(self) -> None:
        """Close the connection; a second call does nothing."""
        if not self._closed:
            self._closed = True
            self._transport.close()

    def _check_open(self) -> None:
        if self._closed:
            raise MlclsClientError(f"model {self.model_name!r} is closed; make a new one with create_model")

    def __enter__(self) -> "Model":
        """Return the model itself."""
        return self

    def __exit__(
        self, exception_type: type[BaseException] | None, exception: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection."""
        self.close()


class _Requests:
    """The requests of one `predict` call: they share a threshold, so one accepted request vouches for it."""

    def __init__(self, transport: Transport, threshold_json: str | None) -> None:
        self._transport = transport
        self._threshold_json = threshold_json
        self._accepted = False

    def ask(self, encoded_images: Sequence[bytes]) -> list[Answer]:
        """Return one answer per image, whatever becomes of the images.

        Raises:
            InvalidRequestError: the server refuses the request for another reason than its images.
        """
        try:
            answers = self._transport.infer(encoded_images, self._threshold_json)
        except InvalidRequestError as error:
            self._check_that_images_are_to_blame()
            if len(encoded_images) == 1:
                return [Answer(status=error.server_text or str(error))]
            # The one text of the refused request does not tell what is wrong with which image.
            return [answer for image in encoded_images for answer in self.ask([image])]
        self._accepted = True
        return answers

    def _check_that_images_are_to_blame(self) -> None:
        """Find out what INVALID_ARGUMENT is about, which the served contract leaves open: the images or the request.

        A request with a good image and the same threshold is accepted if the images were bad.
        """
        if not self._accepted:
            self._transport.infer([_good_image()], self._threshold_json)
            self._accepted = True


def _good_image() -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (128, 128, 128)).save(buffer, format="PNG")
    return buffer.getvalue()


def _batches(sources: Iterable[ImageSource], size: int) -> Iterator[list[ImageSource]]:
    iterator = iter(sources)
    while batch := list(islice(iterator, size)):
        yield batch


def _answer_batch(requests: _Requests, batch: Sequence[ImageSource]) -> list[MultiLabelResult]:
    """Read and send the images of one request; those that cannot be read cost only themselves."""
    encoded: list[bytes | InputError] = []
    for source in batch:
        try:
            encoded.append(source.read())
        except InputError as error:
            encoded.append(error)
    readable = [image for image in encoded if isinstance(image, bytes)]
    answers = iter(requests.ask(readable) if readable else [])
    return [
        _failed_result(source, image) if isinstance(image, InputError) else _make_result(source, image, next(answers))
        for source, image in zip(batch, encoded, strict=True)
    ]


def _make_result(source: ImageSource, image: bytes, answer: Answer) -> MultiLabelResult:
    if answer.status != STATUS_OK:
        name = "an image from memory" if source.input_path is None else repr(source.input_path)
        if source.page_index is not None:
            name = f"page {source.page_index} of {name}"
        return _failed_result(
            source,
            ImageRejectedError(
                f"the server has no result for {name}: {answer.status}",
                input_path=source.input_path,
                reason=answer.status,
            ),
        )
    return MultiLabelResult(answer, input_path=source.input_path, page_index=source.page_index, encoded_image=image)


def _failed_result(source: ImageSource, error: MlclsClientError) -> MultiLabelResult:
    return MultiLabelResult(
        Answer(status=str(error)), input_path=source.input_path, page_index=source.page_index, error=error
    )
