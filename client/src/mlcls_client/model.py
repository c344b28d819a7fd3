"""`create_model` and `Model`: PaddleX's way to predict, answered by a server."""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from types import TracebackType

from mlcls_client.async_model import AsyncModel, create_async_model
from mlcls_client.base.threads import LoopThread, shared_loop, wait_for
from mlcls_client.inputs.encoding import ArrayFormat
from mlcls_client.inputs.fetch import DEFAULT_FETCH_LIMITS, FetchLimits
from mlcls_client.inputs.sources import ImageInput, ImageSource, iterate_sources
from mlcls_client.prediction.call import OnError, Prediction, PredictOptions, read_predict_options
from mlcls_client.prediction.window import Window
from mlcls_client.result import MultiLabelResult
from mlcls_client.transport.connection import DEFAULT_RETRIES, Ssl
from mlcls_client.transport.contract import Threshold
from mlcls_client.transport.transports import DEFAULT_TIMEOUT_S


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
    model_dir: str | os.PathLike[str] | None = None,
    device: str | None = None,
    use_hpip: bool = False,
) -> Model:
    """Make a model whose `predict` is answered by a server. Nothing is sent before the first prediction.

    Args:
        model_name: Name of the ensemble, which is PaddleX's name of the model, e.g. `PP-LCNet_x1_0_ML`.
        url: `host:port`; None for the environment variable `MLCLS_URL`, and without it for `localhost:8001` over gRPC
            and `localhost:8000` over HTTP.
        protocol: `grpc` or `http`.
        timeout_s: Time limit of one request, seconds; all its tries and the pauses between them are within it.
        ssl: False for no TLS; True for TLS with the usual root certificates; the path of a PEM file of root
            certificates; or a dict with the paths of PEM files: `root_certificates`, and for a server that wants to
            know its clients `private_key` and `certificate_chain`.
        headers: Sent with every request, over gRPC as metadata with the names in lower case.
        api_key: Sent with every request as header `authorization: Bearer <api_key>`; use it together with `ssl`.
        retries: Further tries of a request that failed because the server could not be reached, the connection was
            lost, or the server or the model was not ready; with pauses that grow from about 0.2 s to 5 s.
        admin_key: The key with which `mlcls serve` closes some of its APIs (MLCLS_ADMIN_KEY), shared memory among
            them; sent with calls of these APIs alone.
        shared_memory: Put images into memory that client and server share, where both are on one machine and the
            server allows it. Requests with images that do not fit (32 MiB for all in flight) travel as usual.
        model_dir: As in PaddleX; refused, because the server has the model.
        device: As in PaddleX; without effect but for a warning, because the server decides it.
        use_hpip: As in PaddleX; without effect but for a warning, because the server decides it.

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
    return Model(
        create_async_model(
            model_name,
            url,
            protocol,
            timeout_s,
            ssl=ssl,
            headers=headers,
            api_key=api_key,
            retries=retries,
            admin_key=admin_key,
            shared_memory=shared_memory,
            model_dir=model_dir,
            device=device,
            use_hpip=use_hpip,
        )
    )


class Model:
    """One model on one server. A context manager; several threads may use it at once.

    Examples:
        >>> with create_model("PP-LCNet_x1_0_ML", url=server.url) as model:
        ...     [res.label_names for res in model.predict(["photo.png", "photos/"], batch_size=8)]
        [['red'], ['green'], ['blue']]
    """

    def __init__(self, model: AsyncModel) -> None:
        """Make a model that waits for an `AsyncModel`; `create_model` is the usual way."""
        self._model = model
        self._loop = shared_loop()
        # A model that is dropped without `close` does not leave its requests and its connection behind.
        self._finalizer = weakref.finalize(self, _drop, model, self._loop)
        self._finalizer.atexit = False

    @property
    def model_name(self) -> str:
        """Name of the ensemble."""
        return self._model.model_name

    def predict(
        self,
        input: ImageInput,
        batch_size: int = 1,
        threshold: Threshold | None = None,
        on_error: OnError = "raise",
        *,
        top_k: int | None = None,
        concurrency: int | None = None,
        fetch_limits: FetchLimits = DEFAULT_FETCH_LIMITS,
        array_format: ArrayFormat = "png",
        request_id: str | None = None,
    ) -> Iterator[MultiLabelResult]:
        """Predict the labels of images; a generator with one result per image or page, in order.

        Requests overlap: while results are taken, up to `concurrency` further requests are in flight, and four times
        as many are read ahead or answered behind a slow one, as long as they hold less than 64 MiB. So memory does not
        grow with the number of images. Closing the generator, or Ctrl-C, cancels what is in flight. An iterable is
        gone through in the caller's thread, and where it is slow, a result may come one item later than it could.

        The results do not depend on the size of requests, so where the server takes fewer images per request than
        `batch_size`, requests are of the server's size. Where the server keeps its configuration to itself (a
        restricted model-configuration API), they hold one image each.

        Args:
            input: A path of a file or a folder, an http(s) URL, bytes of an image file, an array (H, W, 3) uint8 BGR,
                a PIL image, or an iterable of these. PDF files (extra `pdf`) and TIFF files give a result per page.
            batch_size: Images per request, at most.
            threshold: A label is in the result when its score is above this: a number; a dict with `"default"` and
                class ids or label names; a list with one number per label; None for the model's own threshold.
            on_error: What becomes of an image that cannot be read or that the server rejects. `raise` raises once the
                results before it are taken; `yield` yields a result with `error` set; `skip` logs it and goes on.
            top_k: Of the labels above the threshold, at most so many, those with the highest scores; None for all.
                `threshold=0, top_k=3` gives the best three whatever their scores.
            concurrency: Requests in flight, 1 to 96; None for 16, or fewer where they hold more than 64 images
                together. The server queues 128 for all its clients and refuses more.
            fetch_limits: Size, time and redirects that the fetch of a URL may take.
            array_format: How arrays, PIL images and pages travel: `png`, without loss, or `jpeg`, quality 95, which
                takes less time and may change a score a little.
            request_id: Begin of the ids of this call's requests, which are `<request_id>-0`, `-1` and so on; None for
                a random one. The server's log and spans have them, and errors name them. Where the program has a
                current span of OpenTelemetry, the server's spans become its children.

        Raises:
            InvalidRequestError: An argument is not as described, or the server refuses the threshold.
            InputError: An input cannot be read (`on_error="raise"`), or is of an unsupported type.
            ImageRejectedError: The server rejects an image (`on_error="raise"`).
            ServerUnavailableError: No server answers, or the model is not ready.
            ModelNotFoundError: The server has no such model.
            DeadlineExceededError: No answer within the time limit.
            ProtocolError: The answer is not of the served contract.
            ServerError: The server failed.

        Examples:
            >>> array = numpy.full((60, 80, 3), (0, 90, 250), numpy.uint8)  # orange, BGR
            >>> with create_model("PP-LCNet_x1_0_ML", url=server.url) as model:
            ...     for res in model.predict([array, "photo.png"], threshold={"default": 0.2}, top_k=1):
            ...         print(res.input_path, res.class_ids, res.label_names, res.scores)
            None [0] ['red'] [0.98039]
            photo.png [0] ['red'] [0.78431]
        """
        options = read_predict_options(
            batch_size, threshold, on_error, top_k, concurrency, fetch_limits, array_format, request_id
        )
        self._model.check_open()
        return self._predict(input, options)

    def _predict(self, input: ImageInput, options: PredictOptions) -> Iterator[MultiLabelResult]:
        self._model.check_open()
        prediction = self._loop.run(self._model.begin(options))
        sources = iterate_sources(input, options.fetch_limits, options.array_format)
        window: Window[Future[list[MultiLabelResult]]] = Window(sources, prediction.batch_size, prediction.window_limit)
        sent = taken = 0
        try:
            while True:
                while window.has_room():
                    if batch := window.read_batch():
                        window.add(self._loop.submit(_watched(self._model, prediction, sent, batch)))
                        sent += 1
                first = window.take_first()
                if first is None:
                    return
                results = wait_for(first)
                self._loop.call(prediction.release, taken)
                taken += 1
                for result in prediction.sort_out(results):
                    yield result
                    self._model.check_open()
        finally:
            window.cancel()

    def is_ready(self) -> bool:
        """Tell whether the server answers and the model is ready."""
        self._model.check_open()
        return self._loop.run(self._model.is_ready())

    def wait_until_ready(self, timeout_s: float) -> None:
        """Wait until the server answers and the model is ready.

        Args:
            timeout_s: How long to wait, seconds.

        Raises:
            ServerUnavailableError: It is not ready by then; the message tells the last reason.
        """
        self._model.check_open()
        self._loop.run(self._model.wait_until_ready(timeout_s))

    def close(self) -> None:
        """Cancel what is under way and close the connection; a second call does nothing."""
        if self._finalizer.detach() is not None and self._loop.is_running():
            self._loop.run(self._model.close())

    def __enter__(self) -> Model:
        """Return the model itself."""
        return self

    def __exit__(
        self, exception_type: type[BaseException] | None, exception: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection."""
        self.close()


def _drop(model: AsyncModel, loop: LoopThread) -> None:
    # No waiting: the garbage collector may run in the loop's own thread.
    loop.submit(model.close())


async def _watched(
    model: AsyncModel, prediction: Prediction, number: int, batch: list[ImageSource]
) -> list[MultiLabelResult]:
    task = asyncio.current_task()
    if task is not None:
        model.watch(task)
    return await prediction.answer(number, batch)
