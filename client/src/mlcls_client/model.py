"""`create_model` and `Model`: PaddleX's way to predict, answered by a server."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from typing import Any

from mlcls_client.async_model import AsyncModel
from mlcls_client.base.threads import LoopThread, shared_loop, wait_for
from mlcls_client.inputs.encoding import ArrayFormat
from mlcls_client.inputs.fetch import DEFAULT_FETCH_LIMITS, FetchLimits
from mlcls_client.inputs.sources import ImageInput, ImageSource, iterate_sources
from mlcls_client.prediction import OnError, Prediction, Window
from mlcls_client.result import MultiLabelResult
from mlcls_client.transport.connection import (
    DEFAULT_RETRIES,
    DEFAULT_TIMEOUT_S,
    Connection,
    Ssl,
    read_connection,
)
from mlcls_client.transport.contract import Threshold


def create_model(
    model_name: str,
    url: str | None = None,
    protocol: str = "grpc",
    timeout_s: float = DEFAULT_TIMEOUT_S,
    *,
    ssl: Ssl = False,
    headers: Mapping[str, str] | None = None,
    api_key: str | None = None,
    retries: int = DEFAULT_RETRIES,
    admin_key: str | None = None,
    shared_memory: bool = False,
    threshold: Threshold | None = None,
    batch_size: int = 1,
    model_dir: str | os.PathLike[str] | None = None,
    **paddlex_options: Any,
) -> Model:
    """Make a model whose `predict` is answered by a server. Nothing is sent before the first prediction.

    Args:
        model_name: Name of the ensemble, which is PaddleX's name of the model, e.g. `PP-LCNet_x1_0_ML`.
        url: `host:port`; None for the environment variable `MLCLS_URL`, or without it `localhost:8001` over gRPC and
            `localhost:8000` over HTTP. Over gRPC also several servers, which take turns: `dns:///NAME:PORT`, or a
            list `IP:PORT,IP:PORT`.
        protocol: `grpc` or `http`.
        timeout_s: Time limit of one request, in seconds, including all retries and the pauses between them.
        ssl: False for no TLS; True for TLS with the usual root certificates; the path of a PEM file of root
            certificates; or a dict with the paths of PEM files: `root_certificates`, and `private_key` with
            `certificate_chain` for a server that verifies its clients.
        headers: Sent with every request. Over gRPC they are metadata, with lowercase names.
        api_key: Sent with every request as `authorization: Bearer <api_key>`. Use it together with `ssl`.
        retries: How often to retry a request if the server cannot be reached, the connection is lost, or the server or
            the model is not ready. Pauses grow from about 0.2 s to 5 s.
        admin_key: The server's `MLCLS_ADMIN_KEY`. Sent only with calls of the APIs that `mlcls serve` closes, such as
            shared memory.
        shared_memory: Put images into memory that client and server share. Both must be on one machine, and the
            server must allow it. Requests that do not fit (32 MiB for all in flight) are sent the usual way.
        threshold: What `predict` uses if it gets none, as described there.
        batch_size: What `predict` uses if it gets none.
        model_dir: As in PaddleX. Rejected, because the model is on the server.
        paddlex_options: PaddleX's `device`, `engine`, `engine_config`, `pp_option`, `use_hpip`, `hpi_config` and
            `genai_config` only cause a warning, because the server decides them.

    Raises:
        InvalidRequestError: An argument is not as described.

    Examples:
        >>> model = create_model("PP-LCNet_x1_0_ML", url=server.url)
        >>> for res in model.predict(input="photo.png", batch_size=1):
        ...     res.print()
        ...     res.save_to_img("./output/")
        ...     res.save_to_json("./output/res.json")
        {'res': {'input_path': 'photo.png', 'page_index': None, 'class_ids': [0], 'scores': [0.78431], 'label_names': ['red']}}
        >>> model.close()
    """  # noqa: E501
    options = (ssl, headers, api_key, retries, admin_key, shared_memory, model_dir, paddlex_options)
    return Model(read_connection(model_name, url, protocol, timeout_s, *options), batch_size, threshold)


class Model:
    """One model on one server. A context manager; several threads may use it at once.

    Examples:
        >>> with create_model("PP-LCNet_x1_0_ML", url=server.url) as model:
        ...     [res.label_names for res in model.predict(["photo.png", "photos/"], batch_size=8)]
        [['red'], ['green'], ['blue']]
    """

    def __init__(self, connection: Connection, batch_size: int = 1, threshold: Threshold | None = None) -> None:
        """Make a model on a connection; `create_model` is the usual way."""
        self._model = AsyncModel(connection, batch_size, threshold)
        self._loop = shared_loop()
        # A model that is dropped without `close` must not leave its requests and its connection behind.
        self._finalizer = weakref.finalize(self, _drop, self._model, self._loop)
        self._finalizer.atexit = False

    @property
    def model_name(self) -> str:
        """Name of the ensemble."""
        return self._model.model_name

    def predict(
        self,
        input: ImageInput,
        batch_size: int | None = None,
        threshold: Threshold | None = None,
        on_error: OnError = "raise",
        *,
        top_k: int | None = None,
        concurrency: int | None = None,
        fetch_limits: FetchLimits = DEFAULT_FETCH_LIMITS,
        array_format: ArrayFormat = "png",
        request_id: str | None = None,
    ) -> Iterator[MultiLabelResult]:
        """Predict the labels of images: a generator that yields one result per image or page, in order.

        Requests overlap. While you consume results, up to `concurrency` further requests are in flight. Four times as
        many are read ahead or answered behind a slow one, as long as their images hold less than 64 MiB, so memory
        does not grow with the number of images. Closing the generator, or Ctrl-C, cancels what is in flight. An
        iterable is consumed in the caller's thread; if it is slow, a result may come one item later than it could.

        Results do not depend on the size of requests. If the server takes fewer images per request than `batch_size`,
        requests have the server's size. If the server does not tell its configuration (a restricted
        model-configuration API), each holds one image.

        Args:
            input: The path of a file or folder, an http(s) URL, the bytes of an image file, an open binary file, an
                array (H, W, 3) uint8 BGR, a PIL image, or an iterable of these. PDF files (extra `pdf`) and TIFF files
                give a result per page.
            batch_size: Images per request, at most; None for the model's `batch_size`, which is 1 by default.
            threshold: A label is in the result if its score is above this: a number; a dict with `"default"` and class
                ids or label names; a list with one number per label. None for the `threshold` of `create_model`, and
                without one for the model's own.
            on_error: What to do with an image that cannot be read or that the server rejects. `raise` raises after the
                results before it; `yield` yields a result with `error` set; `skip` logs it and goes on.
            top_k: Keep at most this many of the labels above the threshold, those with the highest scores; None for
                all. `threshold=0, top_k=3` always gives three.
            concurrency: Requests in flight, 1 to 96; None for 16, or fewer if they would hold more than 64 images
                together. The server queues 128 for all its clients and refuses more.
            fetch_limits: Limits on size, time and redirects for fetching a URL.
            array_format: How arrays, PIL images and PDF pages are sent: `png`, which is lossless, or `jpeg` of quality
                95, which is faster and may change a score slightly.
            request_id: Prefix of the ids of this call's requests, `<request_id>-0`, `-1` and so on; None for a random
                one. Errors and the server's log and spans show them. If the program has a current OpenTelemetry span,
                the server's spans become its children.

        Raises:
            InvalidRequestError: An argument is not as described, or the server rejects the threshold.
            InputError: An input cannot be read (`on_error="raise"`), or has an unsupported type.
            ImageRejectedError: The server rejects an image (`on_error="raise"`).
            ServerUnavailableError: No server answers, or the model is not ready.
            ModelNotFoundError: The server has no such model.
            DeadlineExceededError: No answer within the time limit.
            ProtocolError: The answer does not follow the served contract.
            ServerError: The server failed.

        Examples:
            >>> array = numpy.full((60, 80, 3), (0, 90, 250), numpy.uint8)  # orange, BGR
            >>> with create_model("PP-LCNet_x1_0_ML", url=server.url) as model:
            ...     for res in model.predict([array, "photo.png"], threshold={"default": 0.2}, top_k=1):
            ...         print(res.input_path, res.class_ids, res.label_names, res.scores)
            None [0] ['red'] [0.98039]
            photo.png [0] ['red'] [0.78431]
        """
        prediction = self._model.prepare(batch_size, threshold, on_error, top_k, concurrency, array_format, request_id)
        return self._predict(iterate_sources(input, fetch_limits, array_format), prediction)

    __call__ = predict

    def _predict(self, sources: Iterator[ImageSource], prediction: Prediction) -> Iterator[MultiLabelResult]:
        self._model.check_open()
        self._loop.run(prediction.begin())
        window: Window[Future[Any]] = Window(sources, prediction.batch_size, prediction.window_limit)
        sent = 0
        try:
            while True:
                while window.has_room():
                    if batch := window.read_batch():
                        window.add(self._loop.submit(self._model.answer(prediction, sent, batch)))
                        sent += 1
                first = window.take_first()
                if first is None:
                    return
                results = wait_for(first)
                self._loop.call(prediction.release)
                for result in prediction.sort_out(results):
                    yield result
                    self._model.check_open()
        finally:
            window.cancel()

    def is_ready(self) -> bool:
        """Return whether the server answers and the model is ready."""
        self._model.check_open()
        return self._loop.run(self._model.is_ready())

    def wait_until_ready(self, timeout_s: float) -> None:
        """Wait until the server answers and the model is ready.

        Args:
            timeout_s: How long to wait, in seconds.

        Raises:
            ServerUnavailableError: It is not ready by then; the message gives the last reason.
        """
        self._model.check_open()
        self._loop.run(self._model.wait_until_ready(timeout_s))

    def close(self) -> None:
        """Cancel what is in flight and close the connection; a second call does nothing."""
        if self._finalizer.detach() is not None and self._loop.is_running():
            self._loop.run(self._model.close())

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _drop(model: AsyncModel, loop: LoopThread) -> None:
    # No waiting: the garbage collector may run in the loop's own thread.
    if loop.is_running():
        loop.submit(model.close())
