"""Triton's gRPC API, through tritonclient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from benchmarks.load.locustfiles.reply import OUTPUTS, Refusal, Reply, assemble_reply


def connect(url: str) -> InferenceServerClient:
    """Return a client with its own connection; by default, gRPC shares one among all clients of a process.

    Args:
        url: `host:port`.
    """
    # a proxy from the environment cannot reach this machine
    return InferenceServerClient(
        url, channel_args=[("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
    )


def encode_request(images: Sequence[bytes], threshold: str | None = None) -> dict[str, Any]:
    """Return the arguments of `InferenceServerClient.infer` for one request.

    Args:
        images: Encoded images, 1 or more.
        threshold: Request parameter `threshold`.
    """
    tensor = InferInput("image", [len(images), 1], "BYTES")
    tensor.set_data_from_numpy(np.array(images, dtype=np.object_).reshape(-1, 1))
    return {
        "inputs": [tensor],
        "outputs": [InferRequestedOutput(name) for name in OUTPUTS],
        "parameters": None if threshold is None else {"threshold": threshold},
    }


def decode_result(result: Any, image_count: int) -> Reply:
    """Return the server's reply from an `InferResult`."""
    scores, results, statuses = (result.as_numpy(name) for name in OUTPUTS)
    if scores is None or results is None or statuses is None:
        return Refusal("MALFORMED", f"expected the outputs {', '.join(OUTPUTS)}, got some of them")
    return assemble_reply(scores, results.ravel().tolist(), statuses.ravel().tolist(), image_count)


def decode_error(error: InferenceServerException) -> Refusal:
    """Return the refusal behind an exception of tritonclient."""
    return Refusal(str(error.status()).removeprefix("StatusCode."), str(error.message()))


def ask(url: str, model: str, images: Sequence[bytes], threshold: str | None, timeout_s: float) -> Reply:
    """Send one request on its own connection; `url` is `host:port`, the other arguments as in `triton_http.ask`."""
    client = connect(url)
    try:
        return decode_result(
            client.infer(model, client_timeout=timeout_s, **encode_request(images, threshold)), len(images)
        )
    except InferenceServerException as error:
        return decode_error(error)
    finally:
        client.close()
