"""Triton's binary HTTP bodies, against tritonclient's own code for them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import tritonclient.http

from benchmarks.load.locustfiles import triton_http
from benchmarks.load.locustfiles.reply import Refusal

IMAGES = [b"\xff\xd8 one", b"", b"three\0" * 1000]
SCORES = np.array([[0.1, 0.9], [0.5, np.nan]], np.float32)
RESULTS = ['{"class_ids": [1], "scores": [0.9], "label_names": ["собака"]}', '{"error": "no"}']
STATUSES = ["OK", "no"]


def reference_body(threshold: str | None) -> tuple[dict[str, Any], bytes]:
    tensor = tritonclient.http.InferInput("image", [3, 1], "BYTES")
    tensor.set_data_from_numpy(np.array(IMAGES, dtype=np.object_).reshape(-1, 1))
    outputs = [tritonclient.http.InferRequestedOutput(name) for name in ("scores", "result", "status")]
    body, length = tritonclient.http.InferenceServerClient.generate_request_body(
        [tensor], outputs=outputs, parameters=None if threshold is None else {"threshold": threshold}
    )
    return json.loads(body[:length]), bytes(body[length:])


def response(scores: np.ndarray[Any, Any] = SCORES) -> tuple[dict[str, str], bytes]:
    """A response as Triton writes it, its tensors serialized by tritonclient."""
    tensors = [("scores", "FP32", scores.tobytes(), scores.shape)]
    for name, texts in (("result", RESULTS), ("status", STATUSES)):
        array = np.array([text.encode() for text in texts], dtype=np.object_)
        tensors.append((name, "BYTES", tritonclient.utils.serialize_byte_tensor(array).item(), (len(texts), 1)))
    outputs = [
        {"name": name, "datatype": kind, "shape": list(shape), "parameters": {"binary_data_size": len(raw)}}
        for name, kind, raw, shape in tensors
    ]
    header = json.dumps({"model_name": "m", "outputs": outputs}).encode()
    body = header + b"".join(raw for _, _, raw, _ in tensors)
    return {"INFERENCE-HEADER-CONTENT-LENGTH": str(len(header))}, body


@pytest.mark.parametrize("threshold", [None, "0.3", '{"default": 0.5}'])
def test_requests_are_what_tritonclient_sends(threshold: str | None) -> None:
    headers, body = triton_http.encode_request(IMAGES, threshold)
    length = int(headers["Inference-Header-Content-Length"])
    header, tensors = reference_body(threshold)
    assert json.loads(body[:length]) == header
    assert body[length:] == tensors


def test_responses_are_read() -> None:
    reply = triton_http.decode_response(200, *response(), image_count=2)
    assert not isinstance(reply, Refusal)
    np.testing.assert_array_equal(np.stack([row.scores for row in reply]), SCORES)
    assert [row.result for row in reply] == [json.loads(text) for text in RESULTS]
    assert [row.status for row in reply] == STATUSES


def test_damaged_responses_are_malformed() -> None:
    headers, body = response()
    damaged = [
        (headers, body[:-1], 2),
        (headers, body + b"x", 2),
        (headers, body, 3),
        ({}, body, 2),
        ({**headers, "INFERENCE-HEADER-CONTENT-LENGTH": "5"}, body, 2),
        (headers, body.replace(b'"scores"', b'"zcores"', 1), 2),
        (headers, body.replace(b'{"error"', b'["error"'), 2),
        (headers, b"", 2),
        (*response(SCORES[:1]), 2),
    ]
    for number, (some_headers, some_body, count) in enumerate(damaged):
        reply = triton_http.decode_response(200, some_headers, some_body, count)
        assert isinstance(reply, Refusal), number
        assert reply.code == "MALFORMED", number


@pytest.mark.parametrize(
    ("status", "code"),
    [(400, "INVALID_ARGUMENT"), (503, "UNAVAILABLE"), (500, "INTERNAL"), (404, "NOT_FOUND"), (502, "HTTP_502")],
)
def test_refusals(status: int, code: str) -> None:
    assert triton_http.decode_response(status, {}, b'{"error": "why"}', 1) == Refusal(code, "why")
    assert triton_http.decode_response(status, {}, b"<html>", 1) == Refusal(code, "<html>")


def test_nobody_listens() -> None:
    reply = triton_http.ask("http://127.0.0.1:1", "m", [b"x"], None, 5.0)
    assert isinstance(reply, Refusal)
    assert reply.code == "NO_ANSWER"
