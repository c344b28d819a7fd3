"""One request to an ensemble, with tritonclient alone."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import tritonclient.grpc
import tritonclient.http

from mlcls.server.process import TritonServer
from support.serve_process import Served


@dataclasses.dataclass(frozen=True)
class Answer:
    """The outputs of one request, a row for each image."""

    scores: npt.NDArray[np.float32]
    results: list[dict[str, Any]]
    statuses: list[str]


def make_input(images: Sequence[bytes], module: Any = tritonclient.grpc) -> Any:
    """Return the tensor of a request, for tritonclient's gRPC or HTTP."""
    tensor = module.InferInput("image", [len(images), 1], "BYTES")
    tensor.set_data_from_numpy(np.array(images, dtype=np.object_).reshape(-1, 1))
    return tensor


def ask(
    server: TritonServer,
    model: str,
    images: Sequence[bytes],
    protocol: Literal["grpc", "http"] = "grpc",
    **parameters: Any,
) -> Answer:
    """Send images in one request; a refusal raises an `InferenceServerException`."""
    outputs = ("scores", "result", "status")
    values = ask_outputs(server, model, images, outputs, protocol=protocol, **parameters)
    return Answer(
        scores=values["scores"],
        results=[json.loads(text) for text in values["result"].ravel()],
        statuses=[text.decode() for text in values["status"].ravel()],
    )


def ask_outputs(
    server: TritonServer | Served,
    model: str,
    images: Sequence[bytes],
    outputs: Sequence[str],
    class_count: int = 0,
    protocol: Literal["grpc", "http"] = "grpc",
    **parameters: Any,
) -> dict[str, npt.NDArray[Any]]:
    """Return the requested outputs by name; `class_count` above 0 uses Triton's classification extension."""
    module = tritonclient.grpc if protocol == "grpc" else tritonclient.http
    requested = [module.InferRequestedOutput(name, class_count=class_count) for name in outputs]
    url = server.grpc_url if protocol == "grpc" else server.http_url
    with module.InferenceServerClient(url) as client:
        result = client.infer(model, [make_input(images, module)], outputs=requested, parameters=parameters or None)
    return {name: result.as_numpy(name) for name in outputs}
