"""Triton's HTTP/REST API with binary tensors, by the binary tensor data extension of the KServe v2 protocol.

A body is a JSON header of `Inference-Header-Content-Length` bytes, followed by the tensors' bytes in the header's
order. An element of a BYTES tensor is its length (4 bytes, little-endian) and its content. tritonclient's own HTTP
client does not work with Locust's.
"""

from __future__ import annotations

import http.client
import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

import numpy as np

from benchmarks.load.locustfiles.reply import OUTPUTS, Refusal, Reply, assemble_reply

_HEADER_LENGTH: Final = "Inference-Header-Content-Length"

# The gRPC status that Triton maps to each status of HTTP.
_CODES: Final = {400: "INVALID_ARGUMENT", 404: "NOT_FOUND", 500: "INTERNAL", 501: "UNIMPLEMENTED", 503: "UNAVAILABLE"}


def infer_path(model: str) -> str:
    """Return the path of a model's inference endpoint."""
    return f"/v2/models/{model}/infer"


def encode_request(images: Sequence[bytes], threshold: str | None = None) -> tuple[dict[str, str], bytes]:
    """Return the HTTP headers and the body of one request.

    Args:
        images: Encoded images, 1 or more.
        threshold: Request parameter `threshold`.
    """
    tensor = b"".join(struct.pack("<I", len(image)) + image for image in images)
    header: dict[str, Any] = {
        "inputs": [
            {
                "name": "image",
                "shape": [len(images), 1],
                "datatype": "BYTES",
                "parameters": {"binary_data_size": len(tensor)},
            }
        ],
        "outputs": [{"name": name, "parameters": {"binary_data": True}} for name in OUTPUTS],
    }
    if threshold is not None:
        header["parameters"] = {"threshold": threshold}
    text = json.dumps(header).encode()
    headers = {
        "Content-Type": "application/octet-stream",
        _HEADER_LENGTH: str(len(text)),
        "Accept-Encoding": "identity",  # else Triton compresses the answer, and the compression is measured too
    }
    return headers, text + tensor


def decode_response(status: int, headers: Mapping[str, str], body: bytes, image_count: int) -> Reply:
    """Return the server's reply.

    Args:
        status: HTTP status.
        headers: HTTP headers; names in any case.
        body: The whole body.
        image_count: Number of images sent.
    """
    if status != 200:
        return Refusal(_CODES.get(status, f"HTTP_{status}"), _error_text(body))
    length = {name.lower(): value for name, value in headers.items()}.get(_HEADER_LENGTH.lower())
    try:
        outputs = _split_outputs(body, len(body) if length is None else int(length))
        scores = outputs["scores"]
        shape = scores["shape"]
        return assemble_reply(
            np.frombuffer(scores["raw"], "<f4").reshape(shape),
            decode_bytes_tensor(outputs["result"]["raw"]),
            decode_bytes_tensor(outputs["status"]["raw"]),
            image_count,
        )
    except (ValueError, KeyError, TypeError, struct.error) as error:
        return Refusal("MALFORMED", f"expected three binary outputs, got {type(error).__name__}: {error}")


def decode_bytes_tensor(raw: bytes) -> list[bytes]:
    """Return the elements of a BYTES tensor.

    Raises:
        ValueError: The tensor ends within an element.
    """
    elements, position = [], 0
    while position < len(raw):
        (length,) = struct.unpack_from("<I", raw, position)
        element = raw[position + 4 : position + 4 + length]
        if len(element) != length:
            raise ValueError(f"expected an element of {length} bytes, got {len(element)}")
        elements.append(element)
        position += 4 + length
    return elements


def ask(url: str, model: str, images: Sequence[bytes], threshold: str | None, timeout_s: float) -> Reply:
    """Send one request on its own connection.

    Args:
        url: `http://host:port`.
        model: The ensemble.
        images: Encoded images.
        threshold: Request parameter `threshold`.
        timeout_s: Time limit of each read and write.
    """
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.netloc, timeout=timeout_s)
    headers, body = encode_request(images, threshold)
    try:
        connection.request("POST", infer_path(model), body, headers)
        response = connection.getresponse()
        return decode_response(response.status, dict(response.getheaders()), response.read(), len(images))
    except (OSError, http.client.HTTPException) as error:
        return Refusal("NO_ANSWER", f"{type(error).__name__}: {error}")
    finally:
        connection.close()


def _split_outputs(body: bytes, header_length: int) -> dict[str, dict[str, Any]]:
    """Return the outputs by name, the bytes of each under `raw`."""
    outputs, position = {}, header_length
    for output in json.loads(body[:header_length])["outputs"]:
        size = output["parameters"]["binary_data_size"]
        outputs[output["name"]] = {**output, "raw": body[position : position + size]}
        position += size
    if position != len(body):
        raise ValueError(f"a body of {position} bytes, by its header; it has {len(body)}")
    return outputs


def _error_text(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace")
