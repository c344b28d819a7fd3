"""One request to a served ensemble, over gRPC or HTTP, and the reply; also for Locust's environment, without mlcls."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

# The outputs of every request: everything that a client can see is checked.
OUTPUTS: Final = ("scores", "result", "status")

# The gRPC status that Triton maps to each status of HTTP.
_CODES: Final = {
    "400": "INVALID_ARGUMENT",
    "404": "NOT_FOUND",
    "499": "DEADLINE_EXCEEDED",  # tritonclient's own
    "500": "INTERNAL",
    "501": "UNIMPLEMENTED",
    "503": "UNAVAILABLE",
}


@dataclasses.dataclass(frozen=True)
class ImageReply:
    """The outputs of one image.

    Attributes:
        scores: (num_labels,) float32; None if the client does not return them.
        result: The JSON object.
        status: `OK`, or why the image has no result.
    """

    scores: npt.NDArray[np.float32] | None
    result: dict[str, Any]
    status: str


@dataclasses.dataclass(frozen=True)
class Refusal:
    """A reply without outputs.

    Attributes:
        code: gRPC's name of the status, for example `INVALID_ARGUMENT`; `NO_ANSWER` if the connection failed, and
            `MALFORMED` if the answer violates the protocol.
        message: Text from the server or the client library.
    """

    code: str
    message: str


Reply = list[ImageReply] | Refusal


def connect(url: str, *options: tuple[str, int]) -> Any:
    """Return a gRPC client with its own connection; by default, gRPC shares one among all clients of a process.

    Args:
        url: `host:port`.
        options: More options of gRPC channels.
    """
    # a proxy from the environment cannot reach this machine
    return tritonclient.grpc.InferenceServerClient(
        url, channel_args=[("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1), *options]
    )


def make_request(module: Any, images: Sequence[bytes], threshold: str | None = None) -> dict[str, Any]:
    """Return the arguments of `InferenceServerClient.infer` for one request, without the model.

    Args:
        module: `tritonclient.grpc` or `tritonclient.http`.
        images: Encoded images, 1 or more.
        threshold: Request parameter `threshold`.
    """
    tensor = module.InferInput("image", [len(images), 1], "BYTES")
    tensor.set_data_from_numpy(np.array(images, dtype=np.object_).reshape(-1, 1))
    return {
        "inputs": [tensor],
        "outputs": [module.InferRequestedOutput(name) for name in OUTPUTS],
        "parameters": None if threshold is None else {"threshold": threshold},
    }


def read_result(result: Any, image_count: int) -> Reply:
    """Return the reply from an `InferResult`, or a `MALFORMED` refusal if it is not one for each image."""
    try:
        scores, results, statuses = (result.as_numpy(name) for name in OUTPUTS)
        rows = zip(scores, results.ravel(), statuses.ravel(), strict=True)
        replies = [ImageReply(row, dict(json.loads(text)), status.decode()) for row, text, status in rows]
        if scores.ndim != 2 or len(replies) != image_count:
            raise ValueError(f"scores {scores.shape}")
    except Exception as error:  # whatever the server sent
        return Refusal("MALFORMED", f"expected {', '.join(OUTPUTS)} of {image_count} images, got {error!r}")
    return replies


def read_error(error: InferenceServerException) -> Refusal:
    """Return the refusal behind an exception of tritonclient."""
    code = str(error.status()).removeprefix("StatusCode.")
    return Refusal(_CODES.get(code, code), str(error.message()))


def ask(client: Any, model: str, images: Sequence[bytes], threshold: str | None = None, timeout_s: float = 60) -> Reply:
    """Send one request over gRPC.

    Args:
        client: From `connect`.
        model: The ensemble.
        images: Encoded images.
        threshold: Request parameter `threshold`.
        timeout_s: Time limit of the complete answer.
    """
    try:
        result = client.infer(model, client_timeout=timeout_s, **make_request(tritonclient.grpc, images, threshold))
    except InferenceServerException as error:
        return read_error(error)
    return read_result(result, len(images))
