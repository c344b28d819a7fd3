"""A server with the served contract in this process, for tests of programs that use this client.

    from mlcls_client import create_model
    from mlcls_client.testing import FakeServer

    with FakeServer("PP-LCNet_x1_0_ML") as server, create_model("PP-LCNet_x1_0_ML", url=server.url) as model:
        results = list(model.predict("photo.jpg"))

It speaks gRPC like Triton but has no network: the scores of its labels `red`, `green` and `blue` are the means of the
image's color channels, so different images have different answers.
"""

from __future__ import annotations

import importlib
import io
import json
import mmap
import threading
from collections.abc import Callable
from concurrent import futures
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from mlcls_client.transport.connection import ADMIN_KEY_HEADER
from mlcls_client.transport.contract import IMAGE, RESULT, STATUS, STATUS_OK, THRESHOLD_PARAMETER

LABEL_NAMES: Final = ("red", "green", "blue")
DEFAULT_THRESHOLD: Final = 0.5
_MAX_WORKERS: Final = 96


@dataclass
class FakeServer:
    """A gRPC server on this machine; a context manager. Its fields can be changed while it runs.

    Examples:
        >>> with FakeServer("cats", ready=False) as fake, create_model("cats", url=fake.url) as model:
        ...     model.is_ready()
        False

    Attributes:
        model_name: Its only model.
        max_batch_size: Images per request; larger requests are rejected.
        ready: The answer of the readiness calls.
        config_closed: Whether the model-configuration API requires a key, as on a hardened server.
        raw_result: Sent as every output `result` instead of an answer, to test how bad answers are handled.
        outages: How many of the next inference requests are answered UNAVAILABLE.
        busy_regions: How many of the next calls to unregister a region are refused, as if a request used it.
        credentials: A `grpc.ServerCredentials` for TLS; None for a connection that is not encrypted.
        delay: Called with the images of a request before it is answered, e.g. to sleep.
        admin_key: The key that closes the APIs of the model repository and of shared memory; None for open APIs.
        port: Port to serve on; 0 for a free one.
        in_flight: Requests that are being answered.
        most_in_flight: Maximum of `in_flight` so far.
        canceled: How many requests were canceled before they were answered.
        regions: The registered regions of shared memory, by name.
        requests: The images and the `threshold` parameter of each inference request so far.
        request_ids: The id of each inference request so far.
        headers: The metadata of each call so far, including readiness calls.
        url: `host:port`, once started.
    """

    model_name: str
    max_batch_size: int = 8
    ready: bool = True
    config_closed: bool = False
    raw_result: bytes | None = None
    outages: int = 0
    busy_regions: int = 0
    credentials: Any = field(default=None, repr=False)
    delay: Callable[[list[bytes]], None] | None = None
    admin_key: str | None = field(default=None, repr=False)
    port: int = 0
    in_flight: int = 0
    most_in_flight: int = 0
    canceled: int = 0
    regions: dict[str, mmap.mmap] = field(default_factory=dict, repr=False)
    requests: list[tuple[list[bytes], str | None]] = field(default_factory=list, repr=False)
    request_ids: list[str] = field(default_factory=list, repr=False)
    headers: list[dict[str, str]] = field(default_factory=list, repr=False)
    url: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __enter__(self) -> FakeServer:
        """Start serving."""
        grpc: Any = importlib.import_module("grpc")
        stubs: Any = importlib.import_module("tritonclient.grpc.service_pb2_grpc")
        limits = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self._server: Any = grpc.server(futures.ThreadPoolExecutor(max_workers=_MAX_WORKERS), options=limits)
        servicer = type("Servicer", (_Methods, stubs.GRPCInferenceServiceServicer), {})(self)
        stubs.add_GRPCInferenceServiceServicer_to_server(servicer, self._server)
        address = f"127.0.0.1:{self.port}"
        self.port = (
            self._server.add_insecure_port(address)
            if self.credentials is None
            else self._server.add_secure_port(address, self.credentials)
        )
        self.url = f"127.0.0.1:{self.port}"
        self._server.start()
        return self

    def __exit__(
        self, exception_type: type[BaseException] | None, exception: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop at once."""
        self._server.stop(grace=None).wait()


class _Methods:
    """The calls of Triton's gRPC service that the client uses."""

    def __init__(self, fake: FakeServer) -> None:
        self._fake = fake
        self._messages: Any = importlib.import_module("tritonclient.grpc.service_pb2")
        self._codes: Any = importlib.import_module("grpc").StatusCode

    def ServerLive(self, request: Any, context: Any) -> Any:
        self._note_headers(context)
        return self._messages.ServerLiveResponse(live=True)

    def ServerMetadata(self, request: Any, context: Any) -> Any:
        self._note_headers(context)
        return self._messages.ServerMetadataResponse(name="fake", version="0")

    def RepositoryIndex(self, request: Any, context: Any) -> Any:
        self._note_headers(context)
        self._check_key(context)
        response = self._messages.RepositoryIndexResponse()
        for suffix in ("", "_preprocess", "_engine", "_postprocess"):
            response.models.add(name=self._fake.model_name + suffix, version="1", state="READY")
        return response

    def ModelStatistics(self, request: Any, context: Any) -> Any:
        self._note_headers(context)
        response = self._messages.ModelStatisticsResponse()
        for suffix in ("", "_preprocess", "_engine", "_postprocess"):
            response.model_stats.add(name=self._fake.model_name + suffix, version="1")
        return response

    def SystemSharedMemoryRegister(self, request: Any, context: Any) -> Any:
        self._check_key(context)
        try:
            with (Path("/dev/shm") / request.key.lstrip("/")).open("r+b") as file:
                self._fake.regions[request.name] = mmap.mmap(file.fileno(), request.byte_size)
        except OSError:
            context.abort(self._codes.INVALID_ARGUMENT, f"Unable to open shared memory region: '{request.key}'")
        return self._messages.SystemSharedMemoryRegisterResponse()

    def SystemSharedMemoryUnregister(self, request: Any, context: Any) -> Any:
        self._check_key(context)
        if self._fake.busy_regions > 0:
            self._fake.busy_regions -= 1
            text = f"Cannot unregister shared memory region '{request.name}', it is currently in use."
            context.abort(self._codes.INTERNAL, text)
        self._fake.regions.pop(request.name).close()
        return self._messages.SystemSharedMemoryUnregisterResponse()

    def ServerReady(self, request: Any, context: Any) -> Any:
        self._note_headers(context)
        return self._messages.ServerReadyResponse(ready=self._fake.ready)

    def ModelReady(self, request: Any, context: Any) -> Any:
        self._note_headers(context)
        return self._messages.ModelReadyResponse(ready=self._fake.ready and request.name == self._fake.model_name)

    def ModelConfig(self, request: Any, context: Any) -> Any:
        self._note_headers(context)
        if self._fake.config_closed:
            context.abort(
                self._codes.UNAVAILABLE, "This protocol is restricted, expecting header 'triton-grpc-protocol-key'"
            )
        self._check_name(request.name, context)
        response = self._messages.ModelConfigResponse()
        response.config.name = request.name
        response.config.max_batch_size = self._fake.max_batch_size
        return response

    def ModelInfer(self, request: Any, context: Any) -> Any:
        self._note_headers(context)
        self._check_name(request.model_name, context)
        if not self._fake.ready:
            context.abort(
                self._codes.UNAVAILABLE, f"Request for unknown model: '{request.model_name}' has no available versions"
            )
        if self._fake.outages > 0:
            self._fake.outages -= 1
            context.abort(self._codes.UNAVAILABLE, "the server is being restarted")
        images = self._read_images(request, context)
        parameter = request.parameters.get(THRESHOLD_PARAMETER)
        threshold_json = parameter.string_param if parameter is not None else None
        with self._fake._lock:
            self._fake.requests.append((images, threshold_json))
            self._fake.request_ids.append(request.id)
            self._fake.in_flight += 1
            self._fake.most_in_flight = max(self._fake.most_in_flight, self._fake.in_flight)
        answered = threading.Event()
        if not context.add_callback(lambda: self._note_end(answered.is_set())):
            self._note_end(answered=False)
            context.abort(self._codes.CANCELLED, "the caller has left already")
        if self._fake.delay is not None:
            self._fake.delay(images)
        answered.set()
        try:
            threshold = _read_threshold(threshold_json)
        except ValueError as error:
            context.abort(self._codes.INVALID_ARGUMENT, f"expected a threshold, got {threshold_json}: {error}.")
        answers = [_answer(image, threshold) for image in images]
        if all(status != STATUS_OK for status, _ in answers):
            context.abort(self._codes.INVALID_ARGUMENT, "; ".join(status for status, _ in answers))
        return self._make_response(request, answers)

    def _note_end(self, answered: bool) -> None:
        with self._fake._lock:
            self._fake.in_flight -= 1
            self._fake.canceled += not answered

    def _check_key(self, context: Any) -> None:
        header = f"triton-grpc-protocol-{ADMIN_KEY_HEADER}"
        if self._fake.admin_key not in (None, dict(context.invocation_metadata()).get(header)):
            context.abort(self._codes.UNAVAILABLE, f"This protocol is restricted, expecting header '{header}'")

    def _note_headers(self, context: Any) -> None:
        self._fake.headers.append(dict(context.invocation_metadata()))

    def _check_name(self, name: str, context: Any) -> None:
        if name != self._fake.model_name:
            context.abort(self._codes.NOT_FOUND, f"Request for unknown model: '{name}' is not found")

    def _read_images(self, request: Any, context: Any) -> list[bytes]:
        tensor = request.inputs[0]
        if (tensor.name, tensor.datatype, list(tensor.shape)[1:]) != (IMAGE, "BYTES", [1]):
            context.abort(self._codes.INVALID_ARGUMENT, f"unexpected inference input {tensor.name!r}")
        content, images = self._read_tensor(request, context), []
        while content:
            end = 4 + int.from_bytes(content[:4], "little")
            images.append(content[4:end])
            content = content[end:]
        if len(images) > self._fake.max_batch_size:
            context.abort(
                self._codes.INVALID_ARGUMENT,
                f"inference request batch-size must be <= {self._fake.max_batch_size} for '{request.model_name}'",
            )
        return images

    def _read_tensor(self, request: Any, context: Any) -> bytes:
        parameters = request.inputs[0].parameters
        if "shared_memory_region" not in parameters:
            content: bytes = request.raw_input_contents[0]
            return content
        name = parameters["shared_memory_region"].string_param
        if name not in self._fake.regions:
            context.abort(self._codes.INVALID_ARGUMENT, f"Unable to find shared memory region: '{name}'")
        begin = parameters["shared_memory_offset"].int64_param if "shared_memory_offset" in parameters else 0
        return self._fake.regions[name][begin : begin + parameters["shared_memory_byte_size"].int64_param]

    def _make_response(self, request: Any, answers: list[tuple[str, dict[str, Any]]]) -> Any:
        response = self._messages.ModelInferResponse(model_name=request.model_name, model_version="1")
        results = [self._fake.raw_result or json.dumps(result).encode() for _, result in answers]
        contents = {RESULT: results, STATUS: [status.encode() for status, _ in answers]}
        for wanted in request.outputs:
            response.outputs.add(name=wanted.name, datatype="BYTES", shape=[len(answers), 1])
            response.raw_output_contents.append(
                b"".join(len(text).to_bytes(4, "little") + text for text in contents[wanted.name])
            )
        return response


def _read_threshold(threshold_json: str | None) -> float:
    """Read a number or a dict's `"default"`; only the real server knows the other forms."""
    content = DEFAULT_THRESHOLD if threshold_json is None else json.loads(threshold_json)
    if isinstance(content, dict):
        content = content.get("default")
    if not isinstance(content, int | float):
        raise ValueError("neither a number nor a dict with a default")
    return float(content)


def _answer(image: bytes, threshold: float) -> tuple[str, dict[str, Any]]:
    """Return status and result of one encoded image."""
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    try:
        pixels = np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))
    except (UnidentifiedImageError, OSError):
        reason = f"image: expected an encoded image, got {len(image)} bytes in no known format."
        return reason, {"error": reason}
    means = [round(float(mean) / 255, 5) for mean in pixels.mean(axis=(0, 1))]
    class_ids = [index for index in np.argsort([-mean for mean in means]).tolist() if means[index] > threshold]
    return STATUS_OK, {
        "class_ids": class_ids,
        "scores": [means[index] for index in class_ids],
        "label_names": [LABEL_NAMES[index] for index in class_ids],
    }
