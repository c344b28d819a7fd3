"""Requests that no client of ours sends, to a model and to its steps: each costs its caller an error, and no other."""

from __future__ import annotations

import io
import json
import socket
import struct
from collections.abc import Mapping

import numpy as np
import pytest
from PIL import Image

from mlcls.server.http_api import HttpApi, HttpStatusError
from mlcls.server.process import TritonServer

MODEL = "small_with_sigmoid"
Tensor = tuple[str, list[int], bytes]


@pytest.fixture(scope="module")
def image() -> Tensor:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(buffer, "PNG")
    return "BYTES", [1, 1], encode(buffer.getvalue())


def encode(item: bytes) -> bytes:
    return struct.pack("<I", len(item)) + item


def infer(server: TritonServer, model: str, tensors: Mapping[str, Tensor], beginning: bytes = b"") -> bytes:
    """Ask over HTTP, where Triton passes on what gRPC refuses; the JSON begins as given."""
    inputs = [
        {"name": name, "datatype": kind, "shape": shape, "parameters": {"binary_data_size": len(content)}}
        for name, (kind, shape, content) in tensors.items()
    ]
    header = b"{" + beginning + b'"inputs":' + json.dumps(inputs).encode() + b"}"
    body = header + b"".join(content for _, _, content in tensors.values())
    length = {"Inference-Header-Content-Length": str(len(header))}
    return HttpApi(server.http_url).request(f"/v2/models/{model}/infer", 60, body, length)


def refusal(server: TritonServer, model: str, tensors: Mapping[str, Tensor], beginning: bytes = b"") -> str:
    with pytest.raises(HttpStatusError) as raised:
        infer(server, model, tensors, beginning)
    assert raised.value.status == 400, raised.value
    return raised.value.reason


@pytest.mark.parametrize(
    "beginning", [b'"id":"\xff",', b'"parameters":{"threshold":"\xff"},', b'"parameters":{"\xff":"x"},']
)
def test_texts_that_are_not_utf_8(small_server: TritonServer, image: Tensor, beginning: bytes) -> None:
    reason = refusal(small_server, MODEL, {"image": image}, beginning)
    assert reason.endswith(r"expected all texts of a request in UTF-8, got b'\xff'")


def statuses(count: int, *texts: bytes) -> Tensor:
    return "BYTES", [count, 1], b"".join(map(encode, texts))


def logits(count: int, *values: float) -> Tensor:
    return "FP32", [count, 5], np.array(values, np.float32).tobytes()


def test_a_status_that_is_not_utf_8(small_server: TritonServer) -> None:
    tensors = {"logits": logits(1, *[0] * 5), "decode_status": statuses(1, b"\xff\xfe")}
    assert refusal(small_server, f"{MODEL}_postprocess", tensors).startswith("expected all texts of a request in UTF-8")


@pytest.mark.parametrize("count", [0, 1 << 32, 1 << 62])
def test_a_batch_size_that_triton_loses(small_server: TritonServer, image: Tensor, count: int) -> None:
    tensors = {"logits": logits(count, *[0] * 5), "decode_status": statuses(count, b"OK")}
    assert "expected the shape [-1, 1]" in refusal(small_server, f"{MODEL}_postprocess", tensors)
    reason = refusal(small_server, f"{MODEL}_preprocess", {"image": ("BYTES", [count, 1], image[2])})
    assert reason.startswith("image: expected the shape [-1, 1]")


@pytest.mark.parametrize(
    ("suffix", "tensors"),
    [
        ("", {"image": statuses(0)}),
        ("_preprocess", {"image": statuses(33, *[b"x"] * 33)}),
        ("_engine", {"pixels": ("UINT8", [1, 95, 128, 3], bytes(95 * 128 * 3))}),
        ("_engine", {"pixels": ("UINT8", [33, 96, 128, 3], bytes(33 * 96 * 128 * 3))}),
        ("_engine", {"pixels": ("FP32", [1, 96, 128, 3], bytes(4 * 96 * 128 * 3))}),
        ("_postprocess", {"logits": ("FP32", [1, 4], bytes(16)), "decode_status": statuses(1, b"OK")}),
        ("_postprocess", {"logits": logits(2, *[0] * 10), "decode_status": statuses(1, b"OK")}),
        ("_postprocess", {"logits": logits(1, *[0] * 5)}),
    ],
)
def test_shapes_and_types(small_server: TritonServer, suffix: str, tensors: dict[str, Tensor]) -> None:
    refusal(small_server, MODEL + suffix, tensors)


def test_logits_that_are_no_numbers(small_server: TritonServer) -> None:
    values = [np.nan] * 5 + [np.inf, -np.inf, 0, 0, 0]
    tensors = {"logits": logits(2, *values), "decode_status": statuses(2, b"OK", b"OK")}
    answer = json.loads(infer(small_server, f"{MODEL}_postprocess", tensors))
    content = {output["name"]: output["data"] for output in answer["outputs"]}
    assert content["status"][0].startswith("the engine gave scores that are not numbers")
    assert content["status"][1] == "OK"
    assert content["scores"] == [-1] * 5 + [1, 0, 0.5, 0.5, 0.5]


DEEP = b'{"inputs":[{"name":"image","shape":[1,1],"datatype":"BYTES","data":' + b"[" * 100_000 + b"]" * 100_000 + b"}]}"


def test_deep_json(small_server: TritonServer) -> None:
    with pytest.raises(HttpStatusError, match="HTTP status 400"):
        HttpApi(small_server.http_url).request(f"/v2/models/{MODEL}/infer", 60, DEEP)


def test_a_photo_whose_body_is_called_a_form(small_server: TritonServer) -> None:
    """As curl calls any body unless told otherwise."""
    headers = {"Content-Type": "application/x-www-form-urlencoded", "Inference-Header-Content-Length": "0"}
    with pytest.raises(HttpStatusError, match="got unknown data"):
        HttpApi(small_server.http_url).request(f"/v2/models/{MODEL}/infer", 60, bytes(32 << 20), headers)


def test_a_body_in_a_million_chunks(small_server: TritonServer) -> None:
    host, _, port = small_server.http_url.partition(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        head = f"POST /v2/models/{MODEL}/infer HTTP/1.1\r\nHost: localhost\r\nInference-Header-Content-Length: 0\r\n"
        connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        connection.sendall(b"1\r\nx\r\n" * 1_000_000 + b"0\r\n\r\n")
        assert b"got text (1000000 bytes" in connection.recv(10_000)
