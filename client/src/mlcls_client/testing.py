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
from typing import Any, Final

from mlcls_client.transport.connection import ADMIN_KEY_HEADER
from mlcls_client.transport.contract import IMAGE, RESULT, STATUS, STATUS_OK, THRESHOLD_PARAMETER

LABEL_NAMES: Final = ("red", "green", "blue")
DEFAULT_THRESHOLD: Final = 0.5
_MAX_WORKERS: Final = 96
_KEY_PREFIX: Final = "triton-grpc-protocol-"
# What `admin_key` closes.
_CLOSED_CALLS: Final = ("RepositoryIndex", "SystemSharedMemoryRegister", "SystemSharedMemoryUnregister")


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
        grpc: Any = importlib.import_module("grpc")
        self._codes: Any = grpc.StatusCode
        self._messages: Any = importlib.import_module("tritonclient.grpc.service_pb2")
        handlers = {name: self._make_handler(grpc, name, answer) for name, answer in self._answers().items()}
        limits = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self._server: Any = grpc.server(futures.ThreadPoolExecutor(max_workers=_MAX_WORKERS), options=limits)
        service = grpc.method_handlers_generic_handler("inference.GRPCInferenceService", handlers)
        self._server.add_generic_rpc_handlers((service,))
        address = f"127.0.0.1:{self.port}"
        if self.credentials is None:
            self.port = self._server.add_insecure_port(address)
        else:
            self.port = self._server.add_secure_port(address, self.credentials)
        self.url = f"127.0.0.1:{self.port}"
        self._server.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.stop(grace=None).wait()

    def _make_handler(self, grpc: Any, name: str, answer: Callable[[Any, Any], Any]) -> Any:
        def handle(request: Any, context: Any) -> Any:
            headers = dict(context.invocation_metadata())
            self.headers.append(headers)
            if name in _CLOSED_CALLS and self.admin_key not in (None, headers.get(_KEY_PREFIX + ADMIN_KEY_HEADER)):
                self._refuse(context, ADMIN_KEY_HEADER)
            response = answer(request, context)
            if isinstance(response, dict):
                response = getattr(self._messages, f"{name}Response")(**response)
            return response

        read = getattr(self._messages, f"{name}Request").FromString
        write = getattr(self._messages, f"{name}Response").SerializeToString
        return grpc.unary_unary_rpc_method_handler(handle, request_deserializer=read, response_serializer=write)

    def _answers(self) -> dict[str, Callable[[Any, Any], Any]]:
        """Return the calls of Triton's gRPC service that the client uses, and the fields or messages they answer."""
        names = [self.model_name + suffix for suffix in ("", "_preprocess", "_engine", "_postprocess")]
        models = [{"name": name, "version": "1", "state": "READY"} for name in names]
        statistics = [{"name": name, "version": "1"} for name in names]
        return {
            "ServerLive": lambda request, context: {"live": True},
            "ServerReady": lambda request, context: {"ready": self.ready},
            "ServerMetadata": lambda request, context: {"name": "fake", "version": "0"},
            "ModelReady": lambda request, context: {"ready": self.ready and request.name == self.model_name},
            "ModelConfig": self._configure,
            "ModelInfer": self._infer,
            "ModelStatistics": lambda request, context: {"model_stats": statistics},
            "RepositoryIndex": lambda request, context: {"models": models},
            "SystemSharedMemoryRegister": self._register,
            "SystemSharedMemoryUnregister": self._unregister,
        }

    def _refuse(self, context: Any, header: str) -> None:
        text = f"This protocol is restricted, expecting header '{_KEY_PREFIX}{header}'"
        context.abort(self._codes.UNAVAILABLE, text)

    def _register(self, request: Any, context: Any) -> dict[str, Any]:
        try:
            with (Path("/dev/shm") / request.key.lstrip("/")).open("r+b") as file:
                self.regions[request.name] = mmap.mmap(file.fileno(), request.byte_size)
        except OSError:
            context.abort(self._codes.INVALID_ARGUMENT, f"Unable to open shared memory region: '{request.key}'")
        return {}

    def _unregister(self, request: Any, context: Any) -> dict[str, Any]:
        if self.busy_regions > 0:
            self.busy_regions -= 1
            text = f"Cannot unregister shared memory region '{request.name}', it is currently in use."
            context.abort(self._codes.INTERNAL, text)
        self.regions.pop(request.name).close()
        return {}

    def _configure(self, request: Any, context: Any) -> dict[str, Any]:
        if self.config_closed:
            self._refuse(context, "key")
        self._check_name(request.name, context)
        return {"config": {"name": request.name, "max_batch_size": self.max_batch_size}}

    def _check_name(self, name: str, context: Any) -> None:
        if name != self.model_name:
            context.abort(self._codes.NOT_FOUND, f"Request for unknown model: '{name}' is not found")

    def _infer(self, request: Any, context: Any) -> Any:
        self._check_name(request.model_name, context)
        if not self.ready:
            text = f"Request for unknown model: '{request.model_name}' has no available versions"
            context.abort(self._codes.UNAVAILABLE, text)
        if self.outages > 0:
            self.outages -= 1
            context.abort(self._codes.UNAVAILABLE, "the server is being restarted")
        images = self._read_images(request, context)
        parameter = request.parameters.get(THRESHOLD_PARAMETER)
        threshold_json = parameter.string_param if parameter is not None else None
        with self._lock:
            self.requests.append((images, threshold_json))
            self.request_ids.append(request.id)
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        answered = threading.Event()
        if not context.add_callback(lambda: self._note_end(answered.is_set())):
            self._note_end(answered=False)
            context.abort(self._codes.CANCELLED, "the caller has left already")
        if self.delay is not None:
            self.delay(images)
        answered.set()
        try:
            threshold = _read_threshold(threshold_json)
        except ValueError as error:
            context.abort(self._codes.INVALID_ARGUMENT, f"expected a threshold, got {threshold_json}: {error}.")
        answers = [_answer(image, threshold) for image in images]
        if all(status != STATUS_OK for status, _ in answers):
            context.abort(self._codes.INVALID_ARGUMENT, "; ".join(status for status, _ in answers))
        results = [self.raw_result or json.dumps(result).encode() for _, result in answers]
        contents = {RESULT: results, STATUS: [status.encode() for status, _ in answers]}
        response = self._messages.ModelInferResponse(model_name=request.model_name, model_version="1")
        for wanted in request.outputs:
            response.outputs.add(name=wanted.name, datatype="BYTES", shape=[len(answers), 1])
            texts = contents[wanted.name]
            response.raw_output_contents.append(b"".join(len(text).to_bytes(4, "little") + text for text in texts))
        return response

    def _note_end(self, answered: bool) -> None:
        with self._lock:
            self.in_flight -= 1
            self.canceled += not answered

    def _read_images(self, request: Any, context: Any) -> list[bytes]:
        tensor = request.inputs[0]
        if (tensor.name, tensor.datatype, list(tensor.shape)[1:]) != (IMAGE, "BYTES", [1]):
            context.abort(self._codes.INVALID_ARGUMENT, f"unexpected inference input {tensor.name!r}")
        if "shared_memory_region" in tensor.parameters:
            name = tensor.parameters["shared_memory_region"].string_param
            if name not in self.regions:
                context.abort(self._codes.INVALID_ARGUMENT, f"Unable to find shared memory region: '{name}'")
            begin = tensor.parameters["shared_memory_offset"].int64_param
            end = begin + tensor.parameters["shared_memory_byte_size"].int64_param
            content = self.regions[name][begin:end]
        else:
            content = request.raw_input_contents[0]
        utils: Any = importlib.import_module("tritonclient.utils")
        images: list[bytes] = utils.deserialize_bytes_tensor(content).tolist()
        if len(images) > self.max_batch_size:
            text = f"inference request batch-size must be <= {self.max_batch_size} for '{request.model_name}'"
            context.abort(self._codes.INVALID_ARGUMENT, text)
        return images


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
